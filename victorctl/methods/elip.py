"""ELIP: prune and merge patches inside the vision tower, by what the class token will look at."""

from typing import ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from victorctl.methods.base import Inside, Kept, Method, Positions, Spec, Stage, scaled, top

DEPTH = 23  # layers of the tower that the stages are given for: those that LLaVA reads of CLIP-L
STAGES = ((4, 4), (8, 12), (20, 3))  # layer before which it prunes, and layers that it looks ahead
SHARES = (1 / 6, 7 / 12, 1.0)  # of what is pruned in the end, after each stage


class ELIP(Method):
    """Prune in three stages; what is pruned at one is merged into one token, by its attention.

    The layers that follow are run twice: once ahead, to see what the class token attends to. The
    tower was trained on whole pictures, and the question is not mixed into the class token: a LLaVA
    has no encoder for it.

    Source: Guo et al. 2023, arXiv 2309.16738; guoyang9/ELIP at 2d6b65b, ALBEF/models/vit.py, for
    12 layers; here each stage has twice as many.
    """

    stage: ClassVar[Stage] = "tower"
    source: ClassVar[str] = "Guo et al. 2023, arXiv 2309.16738; guoyang9/ELIP at 2d6b65b"
    unverified: ClassVar[tuple[str, ...]] = (
        "stages for a tower of 24 layers",
        "a tower that was not trained so, without the question",
        "towers without a class token: the mean attention that patches receive stands for its",
    )

    positions: Positions = "compact"
    """What goes on is counted anew (compact), or has the positions of the first patches."""

    count: int = Field(230, ge=1)
    """Patches of a picture that are left in the end, beside one that stands for the others."""

    def within(self, layers: int) -> tuple[int, ...]:
        """See `Method.within`."""
        return scaled([stage for stage, _ in STAGES], DEPTH, layers)

    def ahead(self, layer: int, layers: int) -> int:
        """See `Method.ahead`."""
        number = self._number(layer, layers)
        return max(1, round(STAGES[number][1] * layers / DEPTH))

    def trim(self, inside: Inside) -> Kept:
        """See `Method.trim`: keep patches, and put a mean of the others behind them.

        What was merged at an earlier stage is one of the patches here.
        """
        number = self._number(inside.layer, inside.layers)
        score = inside.seen.mean(dim=0)  # [n]
        chosen = top(score, self._kept(inside.patches, number))
        if len(chosen) == len(score):
            return Kept(chosen)
        others = torch.ones_like(score, dtype=torch.bool).index_fill(0, chosen, False)
        weights = functional.normalize(score[others], p=1, dim=0)  # they sum to one
        merged = weights @ inside.states[others].to(weights)
        states = torch.cat([inside.states[chosen], merged[None].to(inside.states)])
        return Kept(torch.arange(len(states), device=states.device), states)

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        kept = self._kept(spec.visual, len(STAGES) - 1)
        return (min(spec.visual, kept + 1),) * spec.layers

    def _number(self, layer: int, layers: int) -> int:
        """Say which stage comes before a layer; a shallow tower has the last ones alone."""
        stages = self.within(layers)
        return stages.index(layer) + len(STAGES) - len(stages)

    def _kept(self, patches: int, stage: int) -> int:
        left = min(self.count, patches) / patches
        return max(1, int(patches * (1 - (1 - left) * SHARES[stage]) + 1e-9))
