"""FoPru: keep the patches, or the rows of patches, that a late layer of the tower attends to."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from victorctl.methods.base import Kept, Method, Positions, Spec, Stage, Tile, grid_of, top


class FoPru(Method):
    """Score patches by attention in the tower, and keep the best ones, or the best rows.

    Source: arXiv 2411.14164, of which the abstract alone was read: three steps, significance,
    pruning by rank or row, and reordering.
    """

    stage: ClassVar[Stage] = "tower"
    source: ClassVar[str] = "arXiv 2411.14164, abstract"
    unverified: ClassVar[tuple[str, ...]] = (
        "the score: attention received in the last layer read, from all tokens or from the class",
        "a row's score is the sum over its patches, and whole rows are kept",
    )

    positions: Positions = "compact"
    """What goes on keeps its position, or is counted anew (compact)."""

    count: int = Field(144, ge=1)
    """Patches of a picture, or of a tile, that go on; of whole rows, as many as come nearest."""

    strategy: Literal["rank", "row"] = "rank"
    """Keep patches, or whole rows of them."""

    score: Literal["received", "class"] = "received"
    """Attention that a patch receives from all tokens on average, or from the class token."""

    def looks(self, layers: int) -> tuple[int, ...]:
        """See `Method.looks`."""
        return (layers - 1,)

    def see(self, tile: Tile) -> Kept:
        """See `Method.see`."""
        layer = tile.layers - 1
        if self.score == "class":
            score = tile.class_attention(layer).mean(dim=0)  # [n]
        else:
            score = tile.attention(layer).mean(dim=(0, 1))
        if self.strategy == "rank":
            return Kept(top(score, self.count))
        return Kept(self._of_rows(score, tile.side))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        stay = min(self.count, spec.visual)
        if self.strategy == "row":
            rows, columns = grid_of(spec.visual)
            stay = self._rows(rows, columns) * columns
        return (stay,) * spec.layers

    def _rows(self, rows: int, columns: int) -> int:
        return max(1, min(rows, round(self.count / columns)))

    def _of_rows(self, score: Tensor, side: tuple[int, int]) -> Tensor:
        best = top(score.reshape(side).sum(dim=1), self._rows(*side))
        places = torch.arange(len(score), device=score.device).view(side)
        return places[best].flatten()
