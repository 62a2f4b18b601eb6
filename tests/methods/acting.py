"""Tiny models of every family for methods to act in, ways to act, and what can be seen of it."""

import copy
import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from transformers import GenerationConfig

from tests.families import drawn, tiny_family
from tests.modeling.laws import Case
from tests.victor_models import ADAPTER
from victorctl import modeling_victor
from victorctl.families import FAMILIES
from victorctl.methods import method
from victorctl.methods.base import Kept, Method, Prompt, Tile
from victorctl.methods.engine import Engine
from victorctl.modeling_victor import Tokens

LAYERS = 6
OURS = {family.model_type: family.ours for family in FAMILIES}
PROMPTS = ("ab#cd", "abc", "#a#bcde", "ab##c")  # one picture, none, two, two that touch
ONE_EACH = ("ab#cd", "#a", "bcde#c")
VIDEOS = ("a%b", "#c%d", "abc")
ROWS = [crc32(name.encode()) for name in "wxyz"]  # as ids of rows are numbered
BOXES = {"w": [[0.1, 0.1, 0.3, 0.3]], "x": [[0.5, 0.0, 0.5, 0.5], [0, 0.8, 0.2, 0.2]],
         "y": [[0.6, 0.6, 0.4, 0.4]]}  # fmt: skip


class Way(NamedTuple):
    """A method with settings that leave something out of 4 visual tokens, in a tower of 16.

    Args:
        name: Of the method.
        settings: Its own.
        full: What lets everything go on; None where nothing does.
        exact: Whether its plan is what it spends on one picture.
        merges: Whether it changes states.
    """

    name: str
    settings: dict[str, Any]
    full: dict[str, Any] | None
    exact: bool = True
    merges: bool = False

    @property
    def prompts(self) -> tuple[str, ...]:
        """A batch of all prompts that it takes."""
        return ONE_EACH if method(self.name).extras else PROMPTS

    def make(self, **more: Any) -> Method:
        """Set it up."""
        if method(self.name).extras:
            more["boxes"] = boxes_file()
        return method(self.name)(seed=1, **{**self.settings, **more})


ALL = {"count": 10**6}
INSIDE = {
    "no-image": Way("no-image", {}, None),
    "no-registers": Way("no-registers", {"layer": 2}, None),
    "random": Way("random", {"count": 3, "layer": 2}, ALL),
    "random at 0": Way("random", {"count": 3}, ALL),
    "last": Way("last", {"count": 3, "layer": 3}, ALL),
    "pool": Way("pool", {"count": 3, "layer": 1}, ALL, merges=True),
    "grid": Way("grid", {"count": 3, "layer": 2}, ALL),
    "fastv": Way("fastv", {"count": 3}, ALL),
    "sparsevlm": Way("sparsevlm", {}, None, merges=True),
    "sparsevlm v2": Way("sparsevlm", {"version": "v2"}, None),
    "sparsevlm rank": Way("sparsevlm", {"mode": "rank"}, None, exact=False, merges=True),
    "pyramiddrop": Way("pyramiddrop", {}, {"percent": 100}),
    "pyramiddrop original": Way("pyramiddrop", {"positions": "original"}, {"percent": 100}),
}
TOWER = {
    "downsample": Way("downsample", {"count": 4}, ALL, merges=True),
    "vtc-cls": Way("vtc-cls", {"count": 5}, ALL),
    "vtc-cls original": Way("vtc-cls", {"count": 5, "positions": "original"}, ALL),
    "fopru": Way("fopru", {"count": 5}, ALL),
    "fopru rows": Way("fopru", {"count": 8, "strategy": "row", "positions": "original"}, ALL),
    "prumerge": Way("prumerge", {}, None, exact=False, merges=True),
    "prumerge+": Way("prumerge+", {}, None, exact=False, merges=True),
    "visionzip": Way("visionzip", {"count": 6}, ALL, merges=True),
    "elip": Way("elip", {"count": 6}, ALL, merges=True),
    "ogs": Way("ogs", {"count": 6}, ALL, merges=True),
}
WAYS = {**INSIDE, **TOWER}


@functools.cache
def boxes_file() -> str:
    """Write boxes for the rows."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(BOXES, file)
    return file.name


@functools.cache
def case(name: str) -> Case:
    """Build a family's Victor model and the native one of the same weights: not to be changed."""
    native = tiny_family(name)
    config = copy.deepcopy(native.config)
    config.victor = {"registers": 3, "drop_layer": 2, "positions": "overlay"}
    config.victor |= {"adapter": ADAPTER, "deep": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = getattr(modeling_victor, OURS[name])(config).eval()
        for parameter in model.victor.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.load_state_dict(model.state_dict() | native.state_dict())
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    native.get_decoder().set_attn_implementation("eager")  # which hands its mask to every layer
    return Case(Path(), model, native, native, drawn(native, name))


class Noting:
    """A method that notes what it has chosen, or chooses between the layers what was noted."""

    def __init__(self, way: Method, notes: Sequence[Kept] | None = None) -> None:
        self.way, self.notes, self.shown = way, [], []
        self.left = None if notes is None else iter(notes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.way, name)

    def reduce(self, prompt: Prompt) -> Kept:
        """Choose, or choose again."""
        self.notes.append(self.way.reduce(prompt) if self.left is None else next(self.left))
        return self.notes[-1]

    def see(self, tile: Tile) -> Kept:
        """Choose features."""
        self.shown.append(tile.features)
        self.notes.append(self.way.see(tile))
        return self.notes[-1]


class Failing(Noting):
    """A method that stops wherever it is asked."""

    def reduce(self, _prompt: Prompt) -> Kept:
        """Stop."""
        raise RuntimeError("on the way")

    see = trim = reduce


class Spying(Engine):
    """An engine of which is seen what stands where in each of its stages."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stages: list[tuple[int, Tokens]] = []

    def _note(self, layers: int, tokens: Tokens) -> None:
        self.stages.append((layers, tokens))
        super()._note(layers, tokens)

    def by_layer(self) -> list[Tokens]:
        """List what stands where, layer by layer."""
        return [tokens for layers, tokens in self.stages for _ in range(layers)]


@torch.no_grad()
def run(made: Case, engine: Engine, batch: dict[str, Tensor], rows: Sequence[int]) -> Any:
    """Let a method act during one call."""
    with engine.acting(rows):
        return made.victor(**batch, use_cache=True)
