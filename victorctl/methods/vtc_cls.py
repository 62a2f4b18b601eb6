"""VTC-CLS: keep the patches that the class token attends to in the tower's late layers."""

from typing import ClassVar

from pydantic import Field

from victorctl.methods.base import Kept, Method, Positions, Spec, Stage, Tile, top


class VTCCLS(Method):
    """Rank patches by the class token's attention, summed over late layers of the tower.

    Source: arXiv 2412.05819; THU-MIG/VTC-CLS at e41ac9b, clip_encoder.py, cls_token_only.
    """

    stage: ClassVar[Stage] = "tower"
    source: ClassVar[str] = "arXiv 2412.05819; THU-MIG/VTC-CLS at e41ac9b"
    unverified: ClassVar[tuple[str, ...]] = (
        "towers without a class token: the mean attention that patches receive stands for its",
    )

    positions: Positions = "compact"
    """What goes on keeps its position, or is counted anew (compact)."""

    count: int = Field(64, ge=1)
    """Patches of a picture, or of a tile, that go on (U)."""

    ensemble: int = Field(3, ge=1)
    """Layers whose attention is summed, the last of them the one that gives the features (K)."""

    def looks(self, layers: int) -> tuple[int, ...]:
        """See `Method.looks`."""
        return tuple(range(max(0, layers - self.ensemble), layers))

    def see(self, tile: Tile) -> Kept:
        """See `Method.see`."""
        rows = [tile.class_attention(layer).mean(dim=0) for layer in self.looks(tile.layers)]
        return Kept(top(sum(rows), self.count))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        return (min(self.count, spec.visual),) * spec.layers
