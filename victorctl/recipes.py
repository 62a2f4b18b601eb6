"""The recipes that come along: find, list, explain and copy them."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from victorctl.errors import VictorError
from victorctl.files import write_whole
from victorctl.recipe import Recipe
from victorctl.sections import Section
from victorctl.yaml_tree import YamlTree

OTHERS = "accelerate/"  # begins the names of files that accelerate reads


def folder() -> Path:
    """Where the recipes are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    shipped = package / "_recipes"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def files() -> dict[str, Path]:
    """Map names such as `demo/victor` to files: recipes, and configurations of accelerate."""
    home = folder()
    found = sorted(home.rglob("*.yaml"))
    return {file.relative_to(home).with_suffix("").as_posix(): file for file in found}


def names() -> dict[str, Path]:
    """Map the names of recipes to their files."""
    return {name: file for name, file in files().items() if not name.startswith(OTHERS)}


def find(name: str) -> Path:
    """Turn what stands after `--recipe` into a path: a file, else one of our names.

    Raises:
        VictorError: If it is neither.
    """
    path, known = Path(name), names()
    if path.is_dir() and name in known:  # such as demo/victor, a model of one's own
        return known[name]
    if not path.exists() and name not in known:
        raise VictorError(
            f"{name}: neither a file nor one of our recipes", fix=f"use one of: {', '.join(known)}"
        )
    return path if path.exists() else known[name]


def spell(path: Path | None) -> list[str]:
    """Write the option that gives this recipe again, by its name if it is ours."""
    if path is None:
        return []
    named = {file: name for name, file in names().items()}
    return ["--recipe", named.get(path, str(path))]


def summaries() -> list[dict[str, str]]:
    """Name each file and say what it does: its first line."""
    return [
        {"name": name, "about": file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")}
        for name, file in files().items()
    ]


def copy(name: str, *, out: Path | None, overwrite: bool) -> Path:
    """Copy a recipe into the working directory, or to `out`, to be changed there."""
    known = files()
    if name not in known:
        raise VictorError(f"no recipe called '{name}'", fix=f"use one of: {', '.join(known)}")
    target = out or Path(known[name].name)
    if target.is_dir():
        target /= known[name].name
    if target.exists() and not overwrite:
        raise VictorError(f"{target} exists", fix="give another --out, or add --overwrite")
    try:
        write_whole(target, known[name].read_bytes())
    except OSError as error:
        reason = str(error.strerror).lower()
        raise VictorError(f"{target}: {reason}", fix="give another --out") from error
    return target


def after(path: Path, name: str) -> str:
    """Write the command that goes on with a copied file."""
    file = shlex.quote(str(path))
    if name.startswith(OTHERS):
        command = "victorctl finetune MODEL --data DATA --out OUT"
        return f"accelerate launch --config_file {file} -m {command}"
    return f"victorctl recipes keys {file}"


def describe(model: type[Section] = Recipe) -> list[dict[str, Any]]:
    """Explain every key: dotted name, type with range, default and meaning."""
    schema = model.model_json_schema()
    return list(_describe(schema, schema.get("$defs", {}), ""))


def explain(path: Path | None) -> list[dict[str, Any]]:
    """Explain every key, and say what a file gives for it; the file need not be valid."""
    rows = describe()
    if path is None:
        return rows
    given = YamlTree.read(path).values
    return [row | {"here": _lookup(given, row["key"])} for row in rows]


def _describe(
    schema: Mapping[str, Any], sections: Mapping[str, Any], above: str
) -> Iterator[dict[str, Any]]:
    for name, prop in schema["properties"].items():
        if "$ref" in prop:
            section = sections[prop["$ref"].rpartition("/")[2]]
            yield from _describe(section, sections, f"{above}{name}.")
        else:
            yield {
                "key": above + name,
                "type": _type(prop),
                "default": prop.get("default"),
                "meaning": prop["description"],
            }


def _type(prop: Mapping[str, Any]) -> str:
    if "anyOf" in prop:
        return ", or ".join(_type(part) for part in prop["anyOf"])
    if "enum" in prop:
        return " | ".join(prop["enum"])
    if "items" in prop:
        return f"list of {_type(prop['items'])}"
    words = {"integer": "whole number", "string": "text", "boolean": "true | false"}
    if "additionalProperties" in prop:
        inner = prop["additionalProperties"]
        return f"mapping of text to {'anything' if inner is True else _type(inner)}"
    if "const" in prop:
        return prop["const"]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    ranges = [f"{sign} {prop[limit]:g}" for limit, sign in signs.items() if limit in prop]
    return " ".join([words.get(prop["type"], prop["type"]), *ranges])


def _lookup(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values
