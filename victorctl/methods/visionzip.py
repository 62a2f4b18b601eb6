"""VisionZip: keep the patches that the class token looks at, and merge the others by likeness."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from victorctl.methods.base import Kept, Method, Positions, Spec, Stage, Tile, top

CONTEXTUAL = 10 / 64  # share of the tokens that are merged ones, in the paper's smallest setting


class VisionZip(Method):
    """Keep dominant patches, the class token first, and merge the rest into contextual tokens.

    Source: Yang et al. 2024, arXiv 2412.04467; dvlab-research/VisionZip at 3151f6d,
    clip_encoder.py and utils.py.
    """

    stage: ClassVar[Stage] = "tower"
    source: ClassVar[str] = (
        "Yang et al. 2024, arXiv 2412.04467; dvlab-research/VisionZip at 3151f6d"
    )
    unverified: ClassVar[tuple[str, ...]] = ("contextual tokens at other counts than 64",)

    positions: Positions = "compact"
    """What goes on is counted anew (compact), or has the positions of the first patches."""

    count: int = Field(64, ge=1)
    """Tokens of a picture, or of a tile, that go on: the class token, patches and merged ones."""

    contextual: int | None = Field(None, ge=1)
    """How many of these are merged, one fewer than all at most; unset: 10 of 64."""

    merge: Literal["sum", "mean"] = "sum"
    """A target and the mean of those assigned to it are added (the code), or all averaged."""

    def looks(self, layers: int) -> tuple[int, ...]:
        """See `Method.looks`."""
        return (layers - 1,)

    def see(self, tile: Tile) -> Kept:
        """See `Method.see`."""
        patches, merged = len(tile.features), self._merged()
        places = torch.arange(min(self.count, patches), device=tile.features.device)
        if self.count >= patches:
            return Kept(places)
        own = self.count - merged - tile.has_class  # dominant patches beside the class token
        score = tile.class_attention(tile.layers - 1).sum(dim=0)  # [n]
        chosen = top(score, own) if own else places[:0]
        rest = torch.ones_like(score, dtype=torch.bool).index_fill(0, chosen, False)
        parts = [tile.states[:1].to(tile.features)] if tile.has_class else []
        parts += [tile.features[chosen]]
        parts += [self._contextual(tile, rest, merged)] if merged else []
        return Kept(places, torch.cat(parts))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        return (min(self.count, spec.visual),) * spec.layers

    def _merged(self) -> int:
        wanted = self.contextual or max(1, round(CONTEXTUAL * self.count))
        return min(wanted, self.count - 1)

    def _contextual(self, tile: Tile, rest: Tensor, count: int) -> Tensor:
        """Merge the patches that are left into so many, by their keys' likeness [count, c]."""
        keys = tile.compare(tile.layers - 1)[1].mean(dim=0)[tile.first :][rest].float()
        metric, features = functional.normalize(keys, dim=-1), tile.features[rest]
        step = max(1, len(metric) // count)
        targets = torch.arange(0, len(metric), step, device=metric.device)[:count]
        others = torch.ones(len(metric), dtype=torch.bool, device=metric.device)
        others[targets] = False
        nearest = (metric[others] @ metric[targets].T).argmax(dim=1)
        member = functional.one_hot(nearest, count).T.float()  # [count, others]
        own, sums = features[targets].float(), member @ features[others].float()
        sizes = member.sum(dim=1, keepdim=True)
        if self.merge == "mean":
            return ((own + sums) / (1 + sizes)).to(features)
        return (own + sums / sizes.clamp(min=1)).to(features)
