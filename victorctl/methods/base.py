"""What a method is: settings, and a decision about the visual tokens that it is shown."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from victorctl.section import Section


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if any(later <= layer for layer, later in pairwise(layers)) or layers[0] < 0:
        raise ValueError("layers must ascend, from 0 on")
    return layers


Layers = Annotated[tuple[int, ...], AfterValidator(_ascending)]
"""Layers of a model, ascending."""

Stage = Literal["picture", "tower", "layers"]
Positions = Literal["original", "compact"]


class Kept(NamedTuple):
    """What goes on of the visual tokens that a method was shown.

    Args:
        index: Places among them, ascending, where something stands that goes on [n].
        states: What stands there [n, d]; None for what stood there before.
    """

    index: Tensor
    states: Tensor | None = None


@dataclass(frozen=True)
class Tile:
    """One picture, or one tile of it, between vision tower and projector.

    Shapes: n patches in reading order, c width of the features, t tokens of the tower: the patches,
    and the class token before them where the tower has one.

    Args:
        features: What the projector is about to read [n, c].
        states: What the tower gave, before the class token was left out [t, c].
        has_class: Whether the first of the tower's tokens is the class token.
        layers: Layers of the tower that are read for the features.
        attend: Computes what some of the tower's tokens attend to in one of its layers.
        compare: Gives the queries and keys of one of its layers, each [heads, t, e].
    """

    features: Tensor
    states: Tensor
    has_class: bool
    layers: int
    attend: Callable[[int, Tensor], Tensor]
    compare: Callable[[int], tuple[Tensor, Tensor]]

    @property
    def first(self) -> int:
        """How many of the tower's tokens stand before the patches."""
        return len(self.states) - len(self.features)

    @property
    def side(self) -> tuple[int, int]:
        """Rows and columns of the patches, as nearly square as they fill."""
        return grid_of(len(self.features))

    def attention(self, layer: int) -> Tensor:
        """Compute what all the tower's tokens attend to, patches alone as columns [heads, t, n]."""
        everyone = torch.arange(len(self.states), device=self.states.device)
        return self.attend(layer, everyone)[..., self.first :]

    def class_attention(self, layer: int) -> Tensor:
        """Compute what the class token attends to [heads, n].

        A tower without one has the mean over all its tokens in its place: the attention that each
        patch receives. That is VisionZip's choice for SigLIP.
        """
        if not self.has_class:
            return self.attention(layer).mean(dim=1)
        return self.attend(layer, torch.zeros(1, dtype=torch.long))[:, 0, self.first :]


@dataclass(frozen=True)
class Prompt:
    """One prompt between two layers of the language model, without its padding.

    Shapes: t tokens, v visual tokens among them, d width.

    Args:
        layer: The layer that comes next, counted from 0.
        states: What enters it [t, d].
        visual: Places of the visual tokens, ascending [v].
        image: Which of the prompt's pictures each of them belongs to, counted from 0 [v].
        attend: Computes what some tokens attend to in an earlier layer.
        generator: For random choices: equal for the same prompt, whatever is beside it.
        store: What the method noted about this prompt at earlier layers.
    """

    layer: int
    states: Tensor
    visual: Tensor
    image: Tensor
    attend: Callable[[int, Tensor], Tensor]
    generator: torch.Generator
    store: dict[str, Any]

    @property
    def pictures(self) -> int:
        """How many pictures the prompt has."""
        return int(self.image.max()) + 1

    @property
    def last(self) -> Tensor:
        """Place of the last token [1]."""
        return torch.tensor([len(self.states) - 1], device=self.states.device)

    @property
    def question(self) -> Tensor:
        """Places of the text behind the last visual token [q]."""
        return torch.arange(int(self.visual[-1]) + 1, len(self.states), device=self.states.device)

    def attention(self, queries: Tensor, layer: int | None = None) -> Tensor:
        """Compute what some tokens attend to, visual tokens alone as columns [heads, q, v].

        Shares are of all that they see, text included: nothing is made to sum to one again.

        Args:
            queries: Places of the tokens that ask [q].
            layer: The one before the next if not given.
        """
        layer = self.layer - 1 if layer is None else layer
        return self.attend(layer, queries)[..., self.visual]


@dataclass(frozen=True)
class Inside:
    """One picture, or one tile of it, between two layers of the vision tower.

    Shapes: n patches that are left, c width.

    Args:
        layer: The layer that comes next, counted from 0.
        layers: Of the tower, that are read for the features.
        states: What enters it of the patches, without the class token [n, c].
        patches: How many there were at first.
        side: Rows and columns of these.
        seen: What the class token will attend to, so many layers ahead as the method asks for
            [heads, n]; without a class token, what patches receive. None where it asks for none.
        row: The number of the prompt, see `Engine.acting`.
        generator: For random choices: equal for the same prompt, whatever is beside it.
    """

    layer: int
    layers: int
    states: Tensor
    patches: int
    side: tuple[int, int]
    seen: Tensor | None
    row: int
    generator: torch.Generator


class Spec(NamedTuple):
    """What a method is brought to a budget for.

    Args:
        visual: Visual tokens of a picture.
        layers: Of the language model.
    """

    visual: int
    layers: int


class Method(Section, ABC):
    """One way to go on with fewer visual tokens, acting on the unconverted weights.

    It decides about one picture or one prompt at a time. Everything else is the engine's: batches,
    padding, masks, the cache, positions and the count of what was spent.
    """

    stage: ClassVar[Stage]
    """Where it acts first."""

    source: ClassVar[str]
    """Paper and code that it follows."""

    unverified: ClassVar[tuple[str, ...]] = ()
    """What of it neither paper nor code was found for."""

    extras: ClassVar[tuple[str, ...]] = ()
    """What the user must give for every picture."""

    knob: ClassVar[str | None] = "count"
    """Setting that decides how much is spent; None where the pictures decide."""

    may_empty: ClassVar[bool] = False
    """Whether it may let nothing go on."""

    pictures: ClassVar[bool] = True
    """Whether the question is asked with its pictures."""

    positions: Positions = "original"
    """What goes on keeps its position, or each layer counts what it holds (compact)."""

    seed: int = Field(0, ge=0)
    """Of random choices."""

    def ready(self) -> None:
        """Check, before anything is loaded, that everything is there that the user must give.

        Raises:
            VictorError: If it is not.
        """

    # ---- Where it acts ----

    @property
    def sees(self) -> bool:
        """Whether it acts before the projector, so that others' features are of no use."""
        return self.stage in ("picture", "tower")

    def before(self, layers: int) -> tuple[int, ...]:
        """Say before which layers of the language model it reduces; 0 is the whole prompt."""
        return ()

    def reads(self, layers: int) -> tuple[int, ...]:
        """Say in which layers of the language model it asks for attention."""
        return ()

    def looks(self, layers: int) -> tuple[int, ...]:
        """Say in which layers of the tower it asks for attention; features are the last's output.

        Args:
            layers: Those of the tower that are read for the features.
        """
        return ()

    def side(self, patches: int) -> int | None:
        """Say how many patches a side of the picture has that the tower is shown; None: as usual.

        Args:
            patches: As many as it has usually.
        """
        return None

    def within(self, layers: int) -> tuple[int, ...]:
        """Say before which layers of the tower it trims.

        Args:
            layers: Those of the tower that are read for the features.
        """
        return ()

    def ahead(self, layer: int, layers: int) -> int:
        """Say how many layers it looks ahead before it trims; 0 for none."""
        return 0

    # ---- What it decides ----

    def reduce(self, prompt: Prompt) -> Kept:
        """Choose or merge visual tokens before one of its layers; at least one goes on."""
        raise NotImplementedError

    def see(self, tile: Tile) -> Kept:
        """Choose or merge features before the projector."""
        return Kept(torch.arange(len(tile.features), device=tile.features.device))

    def trim(self, inside: Inside) -> Kept:
        """Choose or merge patches before one of the tower's layers: as many of every picture."""
        raise NotImplementedError

    # ---- What it spends ----

    @abstractmethod
    def plan(self, spec: Spec) -> tuple[int, ...]:
        """Say how many visual tokens of a picture enter each layer of the language model.

        Methods that act before the projector say so of a tile.
        """

    def mean(self, spec: Spec) -> float:
        """Average the plan over the layers: the budget that this is."""
        return fmean(self.plan(spec))

    def most(self, spec: Spec) -> int:
        """Say how far the knob goes."""
        return spec.visual

    def fit(self, budget: float, spec: Spec) -> Self:
        """Choose the knob that comes nearest to a budget.

        Args:
            budget: Mean visual tokens entering a layer.
            spec: The model's.
        """
        if self.knob is None:
            return self
        ways = [self.model_copy(update={self.knob: n}) for n in range(1, self.most(spec) + 1)]
        return min(ways, key=lambda way: abs(way.mean(spec) - budget))


def checked(kept: Kept, shown: int, method: Method) -> Kept:
    """Hold a method to what it promises.

    Raises:
        ValueError: If nothing goes on, or what does is not in order.
    """
    index = kept.index
    if len(index) == 0 and method.may_empty:
        return kept
    fine = len(index) > 0
    if fine:  # all at once: a GPU is waited for
        inside = (index[0] >= 0) & (index[-1] < shown)
        fine = bool(inside & (index.diff() > 0).all())
    if not fine:
        raise ValueError(
            f"{type(method).__name__}: `index` must name at least one of {shown} tokens, ascending,"
            f" each once, and is {index.tolist()[:9]}"
        )
    return kept


def top(score: Tensor, count: int) -> Tensor:
    """Find the places of the largest scores, ascending; of equal ones the first [count].

    Args:
        score: Of every token [n].
        count: How many; at least one, and no more than there are.
    """
    count = max(1, min(count, len(score)))
    return score.sort(descending=True, stable=True).indices[:count].sort().values


def share(keep: float, of: int) -> int:
    """Turn a share into a number of tokens, at least one."""
    return max(1, min(of, round(keep * of)))


def scaled(layers: Sequence[int], own: int, to: int, least: int = 0) -> tuple[int, ...]:
    """Put layers of one depth at the same shares of another, each apart from the one before.

    Args:
        layers: Ascending.
        own: Layers of the depth that they are given for.
        to: Layers of the other.
        least: The first of them that may be meant.
    """
    found: list[int] = []
    last = max(to - 1, least)
    for layer in layers:
        least = found[-1] + 1 if found else least
        found.append(min(max(round(layer * to / own), least), last))
    return tuple(dict.fromkeys(found))


def grid_of(length: int) -> tuple[int, int]:
    """Read tokens as the most nearly square grid that they fill: rows and columns."""
    rows = max(n for n in range(1, length + 1) if length % n == 0 and n * n <= length)
    return rows, length // rows
