"""The typed recipe: what can be set, its meaning, type, range and default, written once."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from victorctl.errors import VictorError
from victorctl.yaml_tree import Key, Origin, YamlTree, parse_value

FLAGS = {"train.rung": "--train", "data.train": "--data"}
"""Flags that are not named after the last part of their key."""

EXPECTED = {  # what pydantic found wrong, and what belongs there instead
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
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
    "model_type": "a section with keys of its own",
}


class Section(BaseModel):
    """Settings that stand together: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        return {} if value is None else value


class VictorSection(Section):
    """What makes a model a Victor model."""

    registers: int = Field(8, ge=1)
    """Registers put after each image (M)."""

    drop_layer: int | None = Field(None, ge=1)
    """Layers that still see the visual tokens (k); unset: 3 of every 32, at least 2."""

    positions: Literal["overlay", "append"] = "overlay"
    """Registers reuse the last visual positions (overlay), or come after them (append)."""

    init: Literal["embeddings", "visual"] = "visual"
    """What new registers resemble: token embeddings, or projected visual tokens."""


class ConvertSection(Section):
    """How a model is turned into a Victor model."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id; unset: its main branch."""

    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the weights; auto: the source's."""

    verify: Literal["full", "hash", "none"] = "full"
    """What is proved afterwards: the hashes and the logits (full), the hashes, or nothing."""

    link: bool = False
    """Hard-link the weight files instead of copying them."""

    vision_tower: str | None = None
    """Vision tower of an original layout that holds none: a folder or a Hub id."""

    base: str | None = None
    """Language model of an original LoRA or projector; unset: the one that it names."""

    image_aspect: Literal["keep", "pad"] | None = None
    """Pad pictures to squares, or keep what the processor does; unset: what the original does."""


class TrainSection(Section):
    """How registers are trained."""

    rung: Literal["registers", "deep", "register-lora", "lora"] = "register-lora"
    """Trained: registers; offsets too; or low-rank updates too, at registers or everywhere."""

    layers: Literal["early", "all"] = "all"
    """Language-model layers that get low-rank updates: those that see visual tokens, or all."""

    rank: int = Field(32, ge=1)
    """Rank of the low-rank updates."""

    alpha: float | None = Field(None, gt=0)
    """Updates are scaled by alpha / rank; unset: as large as the rank."""

    elastic: bool = False
    """Draw how many registers are in use anew for each step, so that any number serves later."""

    steps: int = Field(600, ge=1)
    """Optimiser steps."""

    batch_size: int = Field(16, ge=1)
    """Pictures in one step."""

    questions: int = Field(4, ge=1)
    """Questions asked about each picture of a step, at most."""

    learning_rate: float = Field(2e-3, gt=0)
    """Highest learning rate."""

    register_learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate of registers and their offsets; unset: the same."""

    warmup: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of what is trained."""

    clip: float = Field(1.0, gt=0)
    """Longest gradient (norm); longer ones are shortened to it."""

    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the loss on the answers in the data."""

    distill: float = Field(1.0, ge=0)
    """Weight of the loss on the unconverted model's own predictions."""

    hidden: float = Field(0.0, ge=0)
    """Weight of matching the unconverted model's late states; above 0, the cache is not used."""

    temperature: float = Field(1.0, gt=0)
    """Softness at which predictions are compared in distillation."""

    top_k: int = Field(32, ge=1)
    """Predictions of the unconverted model kept at each answer position."""

    teacher_cache: bool = True
    """Keep the unconverted model's predictions on disk, computed once; not if train.hidden > 0."""

    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints."""

    autocast: Literal["none", "bf16"] = "none"
    """Number format of the arithmetic in training; none: that of the weights."""

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if self.cross_entropy == self.distill == self.hidden == 0:
            raise ValueError(
                "cross_entropy, distill and hidden are all 0, so there is nothing to learn"
            )
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether the unconverted model is asked for anything."""
        return self.distill > 0 or self.hidden > 0


class DataSection(Section):
    """What is trained on."""

    train: str | None = None
    """Training data: `demo`, or a file."""

    rows: int | None = Field(None, ge=1)
    """Use only the first so many rows; unset: all."""


class EvalSection(Section):
    """How a model is measured."""

    data: str | None = None
    """Data to measure on: `demo:test`, or a file."""

    limit: int | None = Field(None, ge=1)
    """Ask only the first so many questions; unset: all."""

    registers: int | None = Field(None, ge=1)
    """Use the first so many registers alone, of a model trained with train.elastic; unset: all."""

    batch_size: int = Field(32, ge=1)
    """Questions answered at once."""

    max_new_tokens: int = Field(16, ge=1)
    """Longest answer, in tokens."""

    baselines: bool = False
    """Measure the simple alternatives too, at the same layer and count."""

    differences: int = Field(40, ge=0)
    """Questions with differing answers shown in the report, at most."""

    repeats: int = Field(5, ge=0)
    """Timings of each speed; their median counts. 0: no speed is measured."""


class PushSection(Section):
    """How a model is published."""

    license: str | None = None
    """Licence of the base, as the Hub names it; unset: what its own page says."""

    dataset: str | None = None
    """Hub id of the training data, for the page; unset: none is named."""

    report: str | None = None
    """Report on the card; unset: `eval/report.json` in the model, if it is there."""

    private: bool = False
    """Make a new repository private."""

    revision: str | None = None
    """Branch to push to, made if need be; unset: the main one."""

    pr: bool = False
    """Open a pull request."""

    message: str | None = None
    """Title of the commit."""

    untrained: bool = False
    """Publish registers that were never trained."""


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
