"""The sections of a recipe: what can be set, its meaning, type, range and default, written once."""

import re
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from victorctl.section import Section

PROJECTOR = "+projector"  # what a rung's name ends in that trains the projector, too
INTACT = ("registers", "deep", "register-lora")
MERGED = ("lora-early", "lora")  # updates at every position, which become part of the weights
Rung = Literal[
    "registers",
    "registers+projector",
    "deep",
    "deep+projector",
    "register-lora",
    "register-lora+projector",
    "lora-early",
    "lora-early+projector",
    "lora",
    "lora+projector",
    "full",
    "full+projector",
]
Shape = Literal[
    "llava-1.5-7b",
    "llava-1.5-13b",
    "llava-v1.6-mistral-7b",
    "llava-onevision-qwen2-7b",
]


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

    rung: Rung = "register-lora"
    """Trained, from little to much; all train the registers, and with +projector that, too."""

    layers: Literal["early", "all"] = "all"
    """Layers that register-lora updates: those that see visual tokens, or all."""

    rank: int = Field(32, ge=1)
    """Rank of the low-rank updates."""

    alpha: float | None = Field(None, gt=0)
    """Updates are scaled by alpha / rank; unset: as large as the rank."""

    dora: bool = False
    """Learn the lengths of a weight's columns apart, in lora-early and lora (DoRA)."""

    rslora: bool = False
    """Scale by alpha over the root of the rank, in lora-early and lora (rsLoRA)."""

    elastic: bool = False
    """Draw how many registers are in use anew for each step, so that any number serves later."""

    steps: int = Field(600, ge=1)
    """Optimiser steps."""

    batch_size: int = Field(16, ge=1)
    """Pictures in one step."""

    questions: int = Field(4, ge=1)
    """Questions asked about each picture of a step, at most."""

    group_by_length: bool = False
    """Bring rows of like length into the same steps, so that less is filled up."""

    accumulate: int = Field(1, ge=1)
    """Parts in which a step's pictures are gone through one after another, to save memory."""

    checkpointing: bool = False
    """Compute the layers' inner states once more in the backward pass, to save memory."""

    learning_rate: float = Field(2e-3, gt=0)
    """Highest learning rate of low-rank updates, and of all that has none of its own."""

    register_learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate of registers and their offsets; unset: train.learning_rate."""

    base_learning_rate: float = Field(2e-5, gt=0)
    """Highest learning rate of the base's own weights, in full and +projector."""

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

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.kind not in MERGED and (self.dora or self.rslora):
            raise ValueError("dora and rslora are for the rungs lora-early and lora")
        if self.kind in MERGED and self.layers == "early":
            raise ValueError(
                "layers is for register-lora; the rung lora-early updates early layers"
            )
        return self

    @model_validator(mode="after")
    def _the_teacher_can_be_asked(self) -> Self:
        if self.moves_teacher and self.hidden > 0:
            raise ValueError(
                f"{self.rung} changes the model that hidden states would be matched with: set "
                "hidden to 0"
            )
        if self.moves_teacher and self.distill > 0 and not self.teacher_cache:
            raise ValueError(
                f"{self.rung} changes the model that distillation asks, so its predictions must be "
                "kept: set teacher_cache to true, or distill to 0"
            )
        return self

    @property
    def kind(self) -> str:
        """The rung, whether or not the projector is trained, too."""
        return self.rung.removesuffix(PROJECTOR)

    @property
    def with_projector(self) -> bool:
        """Whether the projector is trained."""
        return self.rung.endswith(PROJECTOR)

    @property
    def keeps_base(self) -> bool:
        """Whether the base's weights stay, and so all states up to the first registers."""
        return self.kind in INTACT and not self.with_projector

    @property
    def moves_teacher(self) -> bool:
        """Whether the unconverted model cannot be had any more from the weights in training."""
        return self.kind == "full" or self.with_projector

    @property
    def rate_key(self) -> str:
        """The key of the learning rate that most of what is trained learns at."""
        if self.kind == "full":
            return "base_learning_rate"
        alone = self.kind in ("registers", "deep") and self.register_learning_rate is not None
        return "register_learning_rate" if alone else "learning_rate"

    @property
    def has_teacher(self) -> bool:
        """Whether the unconverted model is asked for anything."""
        return self.distill > 0 or self.hidden > 0


class DataSection(Section):
    """What is trained on."""

    train: str | None = None
    """Training data: `demo`, a file, a folder, or a Hub id with an optional `:split`."""

    mix: dict[str, PositiveFloat] | None = None
    """Several data where data.train is unset; a weight is how often rows come in an epoch."""

    rows: int | None = Field(None, ge=1, le=10**12)
    """Use only the first so many rows, of each; of a Hub id hardly more are fetched. Unset: all."""

    skip_bad: bool = False
    """Open every picture first, and leave bad rows out; else a bad row is an error."""


class EvalSection(Section):
    """How a model is measured."""

    data: str | None = None
    """Data to measure on: `demo:test`, a file, a folder, or a Hub id with a `:split`."""

    benchmarks: tuple[str, ...] | None = None
    """Benchmarks to measure on, instead of data: names with commas between, `paper` or `all`."""

    data_dir: str | None = None
    """Folder with a folder for each benchmark, in the Hub's columns; unset: fetch from the Hub."""

    limit: int | None = Field(None, ge=1, le=10**12)
    """Ask only the first so many questions of each, and all marked with them; unset: all."""

    registers: int | None = Field(None, ge=1)
    """Use the first so many registers alone, of a model trained with train.elastic; unset: all."""

    batch_size: int = Field(32, ge=1)
    """Questions answered at once."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer, in tokens; unset: 16, or what a benchmark gives."""

    base_cache: bool = True
    """Keep the unconverted model's answers on disk, for other models made from it."""

    baselines: bool = False
    """Measure the simple alternatives too, at the same layer and count."""

    differences: int = Field(40, ge=0)
    """Questions with differing answers shown in the report, at most."""

    repeats: int = Field(5, ge=0)
    """Timings of each speed; their median counts. 0: no speed is measured."""

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _names_between_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name for name in value.replace(",", " ").split() if name)
        return value


class CompareSection(Section):
    """What is compared, and at what cost."""

    methods: tuple[str, ...] = ("victor", "fastv", "sparsevlm", "pool", "grid", "random")
    """Methods by name, with commas between; `all` for all that can act in the model."""

    budgets: tuple[Literal["auto"] | PositiveFloat, ...] = ("auto",)
    """Mean visual tokens entering a layer, with commas between; auto: as the model spends."""

    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of methods, by their names, such as {fastv: {layer: 3}}; see `victorctl methods`."""

    @field_validator("budgets", mode="before")  # after the next one: the last comes first
    @classmethod
    def _are_amounts(cls, value: Any) -> Any:
        for part in value if isinstance(value, tuple | list) else ():
            number = re.fullmatch(r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]{1,2})?", str(part))
            if str(part) != "auto" and not (number and float(part) > 0):
                raise ValueError(f"{part} is neither a number above 0 nor auto")
        return value

    @field_validator("methods", "budgets", mode="before")
    @classmethod
    def _between_commas(cls, value: Any) -> Any:
        if isinstance(value, str | int | float):
            return tuple(part for part in str(value).replace(",", " ").split() if part)
        return value


class BenchSection(Section):
    """What speed is measured on."""

    shape: Shape | None = None
    """Model whose sizes the model of random weights has; unset: a folder is measured."""

    layers: int | None = Field(None, ge=3)
    """Layers of the language model of random weights; unset: as many as the shape has."""

    width_scale: float = Field(1.0, gt=0, le=1)
    """Share of the widths, vocabulary and vision tower included; heads keep theirs if they fit."""

    width: int = Field(256, ge=32, multiple_of=32)
    """Width of the language model in `bench train`, a multiple of 32."""

    registers: int | None = Field(None, ge=1)
    """Registers of an image (M); unset: the model's own, of a shape victor.registers."""

    drop_layer: int | None = Field(None, ge=1)
    """Layers that see visual tokens (k); unset: the model's own, of a shape in proportion."""

    also: tuple[str, ...] = ()
    """Measure this beside: M@K, M or @K for other registers and layers, a METHOD, or METHOD:M@K."""

    text: int = Field(64, ge=1)
    """Tokens of text in a prompt, half of them before the picture."""

    speeds: tuple[Literal["time_to_first_token", "prefill", "generate_2", "generate_128"], ...] = (
        "time_to_first_token",
        "prefill",
        "generate_2",
        "generate_128",
    )
    """What is timed."""

    batch_size: int | None = Field(None, ge=1)
    """Prompts at once, in training pictures; unset: 16, or as many of them as fit."""

    questions: int = Field(1, ge=1)
    """Questions asked about each picture of a step."""

    text_before: int = Field(32, ge=0, le=48)
    """Tokens of text before the picture of a step, of 64 in all."""

    repeats: int = Field(3, ge=1)
    """Timings of each; their median counts."""


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
