"""The floor: what accuracy is left when visual tokens are reduced without thought."""

import functools
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from victorctl.methods.base import Kept, Method, Positions, Prompt, Spec, Stage, grid_of


class Nothing(Method):
    """Let no visual token go on."""

    stage: ClassVar[Stage] = "layers"
    knob: ClassVar[str | None] = None
    may_empty: ClassVar[bool] = True

    def reduce(self, prompt: Prompt) -> Kept:
        """See `Method.reduce`."""
        return Kept(prompt.visual[:0])


class NoRegisters(Nothing):
    """Drop every visual token where Victor does, with no register to stand for them.

    Source: this project's; what registers add shows against it.
    """

    source: ClassVar[str] = "this project's: what registers add shows against it"

    layer: int = Field(0, ge=0)
    """Layers that still see the visual tokens."""

    def before(self, layers: int) -> tuple[int, ...]:
        """See `Method.before`."""
        return (self.layer,)

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        return (spec.visual,) * self.layer + (0,) * (spec.layers - self.layer)


class NoImage(Nothing):
    """Ask the question without its pictures: what can be answered from the words alone.

    Source: Goyal et al. 2017, arXiv 1612.00837 (language priors answer many visual questions).
    """

    source: ClassVar[str] = "Goyal et al. 2017, arXiv 1612.00837"
    pictures: ClassVar[bool] = False

    def before(self, layers: int) -> tuple[int, ...]:
        """See `Method.before`: pictures that are shown all the same are dropped at once."""
        return (0,)

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        return (0,) * spec.layers


class OfEachPicture(Method):
    """Reduce every picture of a prompt to so many tokens, before one layer."""

    stage: ClassVar[Stage] = "layers"

    layer: int = Field(0, ge=0)
    """Layers that still see every visual token; 0: the language model never does."""

    count: int = Field(64, ge=1)
    """Visual tokens of each picture that go on."""

    def before(self, layers: int) -> tuple[int, ...]:
        """See `Method.before`."""
        return (self.layer,)

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        stay = min(self.count, spec.visual)
        return (spec.visual,) * self.layer + (stay,) * (spec.layers - self.layer)

    def reduce(self, prompt: Prompt) -> Kept:
        """See `Method.reduce`."""
        chosen = [places[self.choose(len(places), prompt).to(places)] for places in _each(prompt)]
        return Kept(torch.cat(chosen))

    def choose(self, length: int, prompt: Prompt) -> Tensor:
        """Choose among the tokens of one picture, by their numbers [count].

        Args:
            length: How many it has.
            prompt: It is in.
        """
        raise NotImplementedError


class RandomTokens(OfEachPicture):
    """Keep visual tokens drawn at random, evenly over each picture.

    Source: this project's; the control that any way of choosing tokens has to beat.
    """

    source: ClassVar[str] = "this project's: the control of any choice"

    def choose(self, length: int, prompt: Prompt) -> Tensor:
        """See `OfEachPicture.choose`."""
        lot = torch.randperm(length, generator=prompt.generator)
        return lot[: self.count].sort().values


class LastTokens(OfEachPicture):
    """Keep the last visual tokens of each picture: for most models its lower edge.

    Source: this project's; registers laid over the last visual tokens have the same positions.
    """

    source: ClassVar[str] = "Wen et al. 2024, arXiv 2410.14072, an ablation"

    def choose(self, length: int, prompt: Prompt) -> Tensor:
        """See `OfEachPicture.choose`."""
        return torch.arange(max(0, length - self.count), length)


class GridTokens(OfEachPicture):
    """Keep the visual tokens in the middle of the cells of a grid.

    Source: this project's; the tokens of a picture are cut into cells as in `PooledTokens`.
    """

    source: ClassVar[str] = "this project's: uniform sampling"

    def choose(self, length: int, prompt: Prompt) -> Tensor:
        """See `OfEachPicture.choose`."""
        columns = grid_of(length)[1]
        places: dict[int, list[int]] = {}
        for place, cell in enumerate(cells(length, self.count)):
            places.setdefault(cell, []).append(place)
        return torch.tensor(sorted(_middle(own, columns) for own in places.values()))


class PooledTokens(OfEachPicture):
    """Average the visual tokens' states over the cells of a grid, one cell for each that goes on.

    A picture's tokens are read as the most nearly square grid that they fill, and it is cut into
    the most nearly square grid of cells (`cells`). A mean takes the place and the position of its
    cell's last token.

    Source: Yao et al. 2024, arXiv 2405.20985 (average pooling as compression); pooling states
    inside the language model, to act where Victor acts, is this project's.
    """

    source: ClassVar[str] = "Yao et al. 2024, arXiv 2405.20985"

    def reduce(self, prompt: Prompt) -> Kept:
        """Put each cell's mean into the place of its last token."""
        index, states = [], []
        for places in _each(prompt):
            table = cells(len(places), self.count)
            own = prompt.states[prompt.visual[places]]  # [n, d]
            share = functional.one_hot(torch.tensor(table, device=own.device)).to(own.dtype)
            last = {cell: place for place, cell in enumerate(table)}  # in the order of the cells
            index.append(places[[*last.values()]])
            states.append((share / share.sum(dim=0)).T @ own)  # [cells, d]
        return Kept(torch.cat(index), torch.cat(states))


class Downsampled(Method):
    """Show the tower a smaller picture, of fewer patches.

    Source: this project's; what a tower's own position embeddings, interpolated, allow.
    """

    stage: ClassVar[Stage] = "picture"
    source: ClassVar[str] = "this project's: a picture of lower resolution"

    positions: Positions = "compact"
    """What goes on is counted anew: a small picture has fewer positions."""

    count: int = Field(64, ge=1)
    """Visual tokens of each picture, at most; a square of patches."""

    def side(self, patches: int) -> int:
        """Say how many patches a side has, of so many that it has usually."""
        return max(1, min(patches, math.isqrt(self.count)))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        return (self.side(math.isqrt(spec.visual)) ** 2,) * spec.layers


def _each(prompt: Prompt) -> Iterator[Tensor]:
    """Yield, picture by picture, its tokens' places among the visual ones."""
    for image in prompt.image.unique().tolist():
        yield (prompt.image == image).nonzero().squeeze(1)


def _middle(places: list[int], columns: int) -> int:
    """Find the token of a cell that is nearest to its middle."""
    rows, sides = [place // columns for place in places], [place % columns for place in places]
    row, side = sum(rows) / len(rows), sum(sides) / len(sides)
    return min(places, key=lambda at: (at // columns - row) ** 2 + (at % columns - side) ** 2)


@functools.cache
def cells(length: int, count: int) -> tuple[int, ...]:
    """Say in which cell each of an image's tokens lies, cells numbered in reading order.

    12 tokens are a grid of 3 x 4, and 4 cells one of 2 x 2: rows 0-1 and 2, columns 0-1 and 2-3.
    Where no grid of cells fits (7 cells in 4 x 4), the tokens are cut in reading order instead.

    Args:
        length: Tokens of the image.
        count: Cells; each token is one if there are no more tokens than that.
    """
    if count >= length:
        return tuple(range(length))
    height, width = grid_of(length)
    fits = [
        n for n in range(1, count + 1) if count % n == 0 and n <= height and count // n <= width
    ]
    if not fits:
        return tuple(index * count // length for index in range(length))
    rows = min(fits, key=lambda n: abs(n - count // n))
    columns = count // rows
    return tuple(
        (row * rows // height) * columns + column * columns // width
        for row in range(height)
        for column in range(width)
    )
