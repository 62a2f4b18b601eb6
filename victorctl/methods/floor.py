"""The floor: what accuracy is left when visual tokens are reduced without thought."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from victorctl.methods.base import Method, find_visual
from victorctl.modeling_victor import VISUAL, Tokens, keep


class NoRegisters(Method):
    """Drop every visual token where Victor does, with no register to stand for them.

    Source: this project's; what registers add shows against it.
    """

    def survivors(self, visual: int, images: int) -> int:
        """None go on."""
        return 0

    def reduce(
        self, hidden: Tensor, tokens: Tokens, *, rows: Sequence[int]
    ) -> tuple[Tensor, Tokens]:
        """Keep the text."""
        return keep(hidden, tokens, tokens.kind != VISUAL)


class NoImage(NoRegisters):
    """Ask the question without its pictures: what can be answered from the words alone.

    Source: Goyal et al. 2017, arXiv 1612.00837 (language priors answer many visual questions).
    """

    pictures: ClassVar[bool] = False


class RandomTokens(Method):
    """Keep visual tokens drawn at random, evenly over each image.

    The draw depends on the seed, the row's own number and the image's place in its row; so it is
    the same in any batch.

    Source: this project's; the control that any way of choosing tokens has to beat.
    """

    def reduce(
        self, hidden: Tensor, tokens: Tokens, *, rows: Sequence[int]
    ) -> tuple[Tensor, Tokens]:
        """Rank each image's tokens by scrambled numbers and keep the first."""
        places = find_visual(tokens)
        key = torch.tensor(rows, device=hidden.device)[places.row]
        lot = scramble(torch.full_like(key, self.seed))
        for part in (key, places.slot, places.index):
            lot = scramble(lot ^ part)
        by_lot = lot.argsort()
        order = by_lot[places.image[by_lot].argsort(stable=True)]  # image by image, each by lot
        rank = torch.empty_like(order).index_copy(0, order, places.index)
        return keep(hidden, tokens, chosen(tokens, places.flat, rank < self.count))


class LastTokens(Method):
    """Keep the last visual tokens of each image: for most models its lower edge.

    Source: this project's; registers laid over the last visual tokens have the same positions.
    """

    def reduce(
        self, hidden: Tensor, tokens: Tokens, *, rows: Sequence[int]
    ) -> tuple[Tensor, Tokens]:
        """Count from the end of each image."""
        places = find_visual(tokens)
        stays = places.length - places.index <= self.count
        return keep(hidden, tokens, chosen(tokens, places.flat, stays))


class PooledTokens(Method):
    """Average the visual tokens' states over the cells of a grid, one cell for each that goes on.

    An image's tokens are read as the most nearly square grid that they fill, and it is cut into
    the most nearly square grid of cells (`cells`). A mean takes the place and the position of its
    cell's last token.

    Source: Yao et al. 2024, arXiv 2405.20985 (average pooling as compression); pooling states
    inside the language model, to act where Victor acts, is this project's.
    """

    def reduce(
        self, hidden: Tensor, tokens: Tokens, *, rows: Sequence[int]
    ) -> tuple[Tensor, Tokens]:
        """Put each cell's mean into the place of its last token, and keep those."""
        places = find_visual(tokens)
        flat = hidden.flatten(0, 1)  # [b * t, d]
        stays = torch.zeros_like(flat[:, 0], dtype=torch.bool)
        for length in places.length.unique().tolist():
            table = cells(length, self.count)
            last = list({cell: index for index, cell in enumerate(table)}.values())  # [cells]
            share = functional.one_hot(torch.tensor(table, device=flat.device)).to(flat.dtype)
            share = share / share.sum(dim=0)  # [length, cells]
            images = places.flat[places.length == length].unflatten(0, (-1, length))
            target = images[:, last].flatten()  # [images * cells]
            means = share.T @ flat[images]  # [images, cells, d]
            flat = flat.index_copy(0, target, means.flatten(0, 1))
            stays = stays.index_fill(0, target, True)
        kept = chosen(tokens, places.flat, stays[places.flat])
        return keep(flat.view_as(hidden), tokens, kept)


def chosen(tokens: Tokens, flat: Tensor, stays: Tensor) -> Tensor:
    """Mark the text and those visual tokens that stay [b, t].

    Args:
        tokens: What stands where.
        flat: Places of the visual tokens among all of the batch [v].
        stays: Whether they stay [v].
    """
    text = (tokens.kind != VISUAL).flatten()
    return text.index_copy(0, flat, stays).view_as(tokens.kind)


def scramble(number: Tensor) -> Tensor:
    """Map whole numbers of 64 bits to others that look random, one to one.

    Source: Steele et al. 2014, Fast Splittable Pseudorandom Number Generators (SplitMix64).
    """
    number = number - 0x61C8864680B583EB
    number = (number ^ _shift(number, 30)) * -0x40A7B892E31B1A47
    number = (number ^ _shift(number, 27)) * -0x6B2FB644ECCEEE15
    return number ^ _shift(number, 31)


def _shift(number: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; `>>` fills with the sign."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)


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
    height = max(n for n in range(1, length + 1) if length % n == 0 and n * n <= length)
    width = length // height
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
