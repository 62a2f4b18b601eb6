"""LLaVA-PruMerge: keep the outliers of the class token's attention, and merge others into them."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from victorctl.methods.base import Kept, Method, Positions, Spec, Stage, Tile

SHARE = 0.069  # of the patches, that stand out in the paper's pictures on average: 40 of 576


class PruMerge(Method):
    """Let every picture decide how many patches stand out, and add their neighbours to them.

    Attention is that of one head as wide as the tower, in the layer behind the features. Kept
    patches come in the order of their attention; what was not kept is one more token at the end.

    Source: Shang et al. 2024, arXiv 2403.15388; 42Shawn/LLaVA-PruMerge at 097c041, clip_encoder.py,
    token_prune_merge_advanced. There, a batch shares one share; here, every picture has its own.
    """

    stage: ClassVar[Stage] = "tower"
    source: ClassVar[str] = "Shang et al. 2024, arXiv 2403.15388; 42Shawn/LLaVA-PruMerge at 097c041"
    unverified: ClassVar[tuple[str, ...]] = (
        "towers without a class token: the mean attention that patches receive stands for its",
    )
    knob: ClassVar[str | None] = None

    positions: Positions = "compact"
    """What goes on is counted anew (compact), or has the positions of the first patches."""

    neighbours: int = Field(32, ge=1)
    """Patches that are added to each kept one: those with the most similar keys."""

    fence: float = Field(1.5, gt=0)
    """Interquartile ranges above the third quartile from which attention is an outlier."""

    def looks(self, layers: int) -> tuple[int, ...]:
        """See `Method.looks`: the layer behind the features, which need not be run for them."""
        return (layers,)

    def see(self, tile: Tile) -> Kept:
        """See `Method.see`."""
        attention, keys = self._compared(tile)  # [n], [n, c]
        chosen = self.choose(attention)
        merged = self._merge(tile.features, attention, keys, chosen)
        others = torch.ones_like(attention, dtype=torch.bool).index_fill(0, chosen, False)
        if others.any():
            rest = attention[others] @ tile.features[others].float()
            merged = torch.cat([merged, rest[None]])
        places = torch.arange(len(merged), device=merged.device)
        return Kept(places, merged.to(tile.features))

    def choose(self, attention: Tensor) -> Tensor:
        """Choose patches, by descending attention.

        Args:
            attention: That the class token pays to each [n].
        """
        return attention.sort(descending=True, stable=True).indices[: self.outliers(attention)]

    def outliers(self, attention: Tensor) -> int:
        """Count the patches whose attention stands out; at least one."""
        low, high = torch.quantile(attention, attention.new_tensor([0.25, 0.75]))
        found = int((attention > high + self.fence * (high - low)).sum())
        return max(1, found)

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`: the paper's average share, and one for the rest; pictures differ."""
        return (min(spec.visual, self._usual(spec.visual) + 1),) * spec.layers

    @staticmethod
    def _usual(patches: int) -> int:
        return max(1, round(SHARE * patches))

    def _compared(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Compare the class token with the patches as one head would; without one, the mean."""
        query, key = (of.transpose(0, 1).flatten(1).float() for of in tile.compare(tile.layers))
        asking = query[:1] if tile.has_class else query
        rows = (asking @ key.T * query.shape[1] ** -0.5).softmax(dim=-1)
        return rows.mean(dim=0)[tile.first :], key[tile.first :]

    def _merge(self, features: Tensor, attention: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
        """Add to each chosen patch its neighbours, weighted by their attention [m, c]."""
        unit = functional.normalize(keys, dim=-1)
        alike = unit[chosen] @ unit.T  # [m, n]
        alike = alike.scatter(1, chosen[:, None], -torch.inf)  # not itself
        ranked = alike.sort(dim=1, descending=True, stable=True).indices
        near = ranked[:, : min(self.neighbours, len(keys) - 1)]  # [m, neighbours]
        added = (attention[near][..., None] * features[near].float()).sum(dim=1)
        return features[chosen].float() + added


class PruMergePlus(PruMerge):
    """Add patches at even distances, so that no part of the picture is left without a token.

    Source: Shang et al. 2024, arXiv 2403.15388; 42Shawn/LLaVA-PruMerge at 097c041,
    token_prune_merge_advanced_plus.
    """

    def choose(self, attention: Tensor) -> Tensor:
        """See `PruMerge.choose`; then every so many-th patch that is not chosen yet."""
        chosen = super().choose(attention)
        even = torch.tensor(_even(len(attention), len(chosen)), device=chosen.device).long()
        return torch.cat([chosen, even[~torch.isin(even, chosen)]])

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `PruMerge.plan`; of those between, some stand out and are kept anyway."""
        kept = self._usual(spec.visual)
        between = len(_even(spec.visual, kept)) * (1 - kept / spec.visual)
        return (min(spec.visual, kept + round(between) + 1),) * spec.layers


def _even(patches: int, chosen: int) -> range:
    """Say which patches are at even distances, three for each that stands out; never the last."""
    step = max(1, int(int(patches / chosen) / 3))
    return range(0, patches - 1, step)
