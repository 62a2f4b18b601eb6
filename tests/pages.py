"""The generated parts of docs/: what commands and recipes take, read from the code."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import get_args

from typer.models import ArgumentInfo

from victorctl import cli, recipes

DOCS = Path(__file__).parent.parent / "docs"
BEGIN = "<!-- generated: change the code, then run pytest --update-docs -->"
END = "<!-- end of what is generated -->"
VALUES = {int: "N", str: "TEXT", Path: "PATH", list[str]: "TEXT"}


def blocks() -> dict[Path, str]:
    """Map each page to the part of it that is generated."""
    groups = {name: {name: do} for name, do in commands(cli.app).items()}
    groups["recipes"] = {f"recipes {name}": do for name, do in commands(cli.recipes_app).items()}
    pages = {
        DOCS / "commands" / f"{name}.md": "\n\n".join(command(*item) for item in group.items())
        for name, group in groups.items()
    }
    texts = {name: do.__doc__ for name, do in commands(cli.app).items()}
    texts["recipes"] = cli.recipes_app.info.help
    about = [
        (f"[{name}](commands/{name}.md)", text.splitlines()[0]) for name, text in texts.items()
    ]
    pages[DOCS / "cli.md"] = table(("command", "what it does"), about)
    pages[DOCS / "recipes.md"] = table(
        ("key", "type", "default", "meaning"),
        (
            (f"`{row['key']}`", code(row["type"]), default_of(row["default"]), row["meaning"])
            for row in recipes.describe()
        ),
    )
    return pages


def refresh(text: str, title: str, block: str) -> str:
    """Put a block in its place in a page; a page without one gets it under its title."""
    if BEGIN not in text:
        text = f"# {title}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.partition(END)[2]}"


def commands(app: cli.typer.Typer) -> dict[str, Callable]:
    return {info.name or info.callback.__name__: info.callback for info in app.registered_commands}


def command(name: str, do: Callable) -> str:
    about, _, example = inspect.getdoc(do).splitlines()
    example = example.removeprefix("Example: ")
    options = table(("`victorctl " + name + "`", "meaning"), parameters(do))
    return f"{about}\n\n```shell\n{example}\n```\n\n{options}"


def parameters(do: Callable) -> Iterator[tuple[str, str]]:
    for parameter in inspect.signature(do).parameters.values():
        annotation, info = get_args(parameter.annotation)
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
        kind = annotation if annotation in VALUES else kinds[0]
        value = "" if kind is bool else " " + (info.metavar or VALUES[kind])
        if isinstance(info, ArgumentInfo):
            name, value = parameter.name.upper(), ""
        else:
            # Inside Annotated, typer takes the first name for a default.
            names = [info.default, f"--{parameter.name.replace('_', '-')}"]
            name = next(name for name in names if isinstance(name, str)).replace("/", " / ")
        required = parameter.default is inspect.Parameter.empty
        yield (
            code(name + value),
            f"{info.help}{' Required.' if required else ''}"
            + (f" (default {parameter.default})" if isinstance(parameter.default, str) else ""),
        )


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def default_of(value: object) -> str:
    return "" if value is None else code(str(value).lower())
