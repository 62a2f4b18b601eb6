"""What a method is: a choice of the tokens that go on, acting on the unconverted weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from victorctl.modeling_victor import VISUAL, Tokens, VictorMixin


class Places(NamedTuple):
    """Where the visual tokens of a batch are, in reading order, all [v].

    Args:
        flat: Place among all tokens of the batch, row after row.
        image: Number of the image in the batch.
        index: Number of the token in its image.
        length: Visual tokens of that image.
        row: Row of the batch.
        slot: Number of the image in its row.
    """

    flat: Tensor
    image: Tensor
    index: Tensor
    length: Tensor
    row: Tensor
    slot: Tensor


def find_visual(tokens: Tokens) -> Places:
    """Find the visual tokens of a batch; images in a row are told apart even if they touch."""
    flat = (tokens.kind == VISUAL).flatten().nonzero().squeeze(1)
    image = tokens.image.flatten()[flat]
    row = flat // tokens.kind.shape[1]
    lengths = image.bincount()
    starts = lengths.cumsum(0) - lengths
    index = torch.arange(len(flat), device=flat.device) - starts[image]
    first = torch.searchsorted(row, row)  # of the row's visual tokens, the first
    return Places(flat, image, index, lengths[image], row, image - image[first])


@dataclass(frozen=True)
class Method(ABC):
    """One way to go on with fewer visual tokens after the first layers.

    It acts on the unconverted weights, before layer `drop_layer` and during the prefill only;
    survivors keep their positions.

    Args:
        count: Visual tokens of each image that go on.
        seed: Of anything random.
    """

    count: int
    seed: int

    pictures: ClassVar[bool] = True
    """Whether the question is asked with its pictures."""

    @abstractmethod
    def reduce(
        self, hidden: Tensor, tokens: Tokens, *, rows: Sequence[int]
    ) -> tuple[Tensor, Tokens]:
        """Choose or merge.

        Shapes: b rows, t tokens, d width, s survivors of the fullest row.

        Args:
            hidden: What enters layer `drop_layer` [b, t, d].
            tokens: What stands where.
            rows: A number for each row that does not depend on the rows beside it.

        Returns:
            What enters instead [b, s, d], text untouched and in order, and its description.
        """

    def survivors(self, visual: int, images: int) -> int:
        """Say how many visual tokens go on, of so many in all images of a row."""
        return min(visual, images * self.count)

    @contextmanager
    def acting(self, model: VictorMixin, rows: Sequence[int]) -> Iterator[None]:
        """Put this method in the place of Victor for a while.

        Args:
            model: Its registers, and what is trained with them, are out of use meanwhile.
            rows: See `reduce`; one for each row of what is answered.
        """
        victor = model.victor
        before = victor.reduce, victor.inserting
        victor.reduce, victor.inserting = partial(self.reduce, rows=rows), False
        try:
            yield
        finally:
            victor.reduce, victor.inserting = before
