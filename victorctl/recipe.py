"""The recipe: its sections together, read from YAML and flags, with errors that name the place."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from victorctl.errors import VictorError
from victorctl.section import Section
from victorctl.sections import (
    BenchSection,
    CompareSection,
    ConvertSection,
    DataSection,
    EvalSection,
    PushSection,
    TrainSection,
    VictorSection,
)
from victorctl.yaml_tree import Key, Origin, YamlTree, parse_value

FLAGS = {"train.rung": "--train", "data.train": "--data"}
"""Flags that are not named after the last part of their key."""

EXPECTED = {  # what pydantic found wrong, and what belongs there instead
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
    "multiple_of": "a multiple of {multiple_of:g}",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "literal_error": "{expected}",
    "dict_type": "data with their weights, such as {{a.json: 1, b.json: 2}}",
    "tuple_type": "a list, as in [a, b]",
    "model_type": "a section with keys of its own",
}


class Recipe(Section):
    """Every setting of every stage."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random."""

    victor: VictorSection = VictorSection()
    """What makes a model a Victor model."""

    convert: ConvertSection = ConvertSection()
    """How a model is turned into a Victor model."""

    train: TrainSection = TrainSection()
    """How registers are trained."""

    data: DataSection = DataSection()
    """What is trained on."""

    eval: EvalSection = EvalSection()
    """How a model is measured."""

    compare: CompareSection = CompareSection()
    """How methods are compared."""

    bench: BenchSection = BenchSection()
    """The model of random weights that speed is measured on."""

    push: PushSection = PushSection()
    """How a model is published."""


@dataclass(frozen=True)
class Run:
    """Where and on what a stage runs: nothing that changes what is computed, only how."""

    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    attn: str = "sdpa"
    threads: int | None = None
    quiet: bool = False
    base: str | None = None
    log: str = "none"


def load_recipe(
    path: Path | None = None,
    *,
    settings: Sequence[str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read a recipe; flags beat settings, settings beat the file, the file beats the defaults.

    Args:
        path: YAML file; None: defaults only.
        settings: Texts such as `train.steps=200`, values read as YAML.
        flags: Dotted keys with their values; None means that the flag was not given.

    Raises:
        VictorError: With everything that is wrong, each with its place, value and nearest key, in
            the order in which it was written.
    """
    tree = YamlTree() if path is None else YamlTree.read(path)
    for setting in settings or ():
        tree.put(*_parse_setting(setting), f"--set {setting}")
    for key, value in (flags or {}).items():
        if value is not None:
            tree.put(tuple(key.split(".")), value, f"{flag(key)} {value}")
    problems = [_Problem(origin, text) for origin, text in tree.problems]
    try:
        recipe = Recipe.model_validate(tree.values)
    except ValidationError as error:
        problems += [_problem(detail, tree) for detail in error.errors()]
    if problems:
        raise _error(
            problems, shlex.join(["victorctl", "recipes", "keys", *([str(path)] if path else [])])
        )
    return recipe


def flag(key: str) -> str:
    """Name the flag that sets a key, where there is one."""
    return FLAGS.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}"


def _parse_setting(setting: str) -> tuple[Key, Any]:
    key, equals, value = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise VictorError(
            f"--set {setting}: expected a key and a value",
            fix="write for example --set train.steps=200",
        )
    return tuple(key.split(".")), parse_value(value, f"--set {setting}")


class _Problem(NamedTuple):
    origin: Origin
    text: str
    fix: str = ""
    """What to choose instead; '' where only the list of keys helps."""


def _error(problems: Sequence[_Problem], keys: str) -> VictorError:
    """Say all that is wrong, in the order in which it was written."""
    ordered = sorted(problems, key=lambda problem: problem.origin.rank)
    fixes = {problem.fix or keys for problem in problems}
    fix = fixes.pop() if len(fixes) == 1 else f"correct each; the keys: {keys}"
    return VictorError("\n".join(f"{one.origin.place}: {one.text}" for one in ordered), fix=fix)


def _problem(detail: Mapping[str, Any], tree: YamlTree) -> _Problem:
    """Say one validation error: where, what was expected and what was there."""
    key = tuple(str(part) for part in detail["loc"])
    origin, value, kind = tree.origin(key), detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return _Problem(origin, f"unknown key '{'.'.join(key)}'; {_nearest(key)}")
    if kind == "value_error":
        return _Problem(origin, f"{'.'.join(key)}: {detail['ctx']['error']}")
    expected = EXPECTED[kind].format(**detail.get("ctx", {})).replace("'", "")
    fix = "" if kind == "model_type" else f"choose {expected}"
    if origin.typed:
        return _Problem(origin, f"expected {expected}", fix)
    got = "null" if value is None else value or repr(value)
    return _Problem(origin, f"{'.'.join(key)}: expected {expected}, got {got}", fix)


def _nearest(key: Key) -> str:
    """Hint at the key that was meant: near in this section, same name in another, or all."""
    known = _keys_beside(key)
    if near := difflib.get_close_matches(key[-1], known, n=1):
        return f"did you mean '{'.'.join((*key[:-1], near[0]))}'?"
    elsewhere = [
        f"{section}.{name}"
        for section in Recipe.model_fields
        for name in _keys_beside((section, ""))
        if name == key[-1]
    ]
    if elsewhere:
        return f"did you mean {' or '.join(repr(name) for name in elsewhere)}?"
    return f"known: {', '.join(known)}"


def _keys_beside(key: Key) -> list[str]:
    model: Any = Recipe
    for name in key[:-1]:
        model = model.model_fields[name].annotation
    return list(getattr(model, "model_fields", {}))
