"""SparseVLM: let the words that matter to the picture rate its tokens, at three layers."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from victorctl.methods.base import Kept, Layers, Method, Positions, Prompt, Spec, Stage, scaled, top

DEPTH, PATCHES = 32, 576  # of the model that budgets and layers are given for
BUDGETS = {
    "v1": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "v2": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Tokens kept at each stage.

Source: Gumpest/SparseVLMs at 26a5f48 and its branch v1.5, score.py.
"""
RECYCLED, CLUSTERED = 0.3, 0.1  # shares of the pruned that are merged, and of these, clusters
RANK_SCALE = 13.5  # of the first release
BEST_HEADS = 14  # of v2, those whose raters look at the picture most


class SparseVLM(Method):
    """Rank visual tokens by the attention of the text that matters to them; merge some of the rest.

    Source: Zhang et al. 2024, arXiv 2410.04417; Gumpest/SparseVLMs at 26a5f48, score.py, utils.py
    and modelling_sparse_llama.py.
    """

    stage: ClassVar[Stage] = "layers"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv 2410.04417; Gumpest/SparseVLMs at 26a5f48"
    unverified: ClassVar[tuple[str, ...]] = (
        "budgets between those of the code, which are interpolated",
        "v2 without its correction of the distance bias",
        "a token is the nearest of its own neighbours when its density is taken",
    )
    knob: ClassVar[str | None] = "budget"

    version: Literal["v1", "v2"] = "v1"
    """v1 merges and counts positions anew; v2 merges nothing and keeps positions."""

    positions: Positions | None = None
    """Each layer counts what it holds (compact), or tokens keep theirs; unset: as the version."""

    mode: Literal["fixed", "rank"] = "fixed"
    """How many go on: a fixed budget, or the rank of the attention (the paper's rule)."""

    budget: int = Field(192, ge=1)
    """Mean tokens leaving a layer, of 576 visual tokens; the code has 192, 128, 96 and 64."""

    stages: Layers = Field((2, 6, 15), min_length=3, max_length=3)
    """Layers after which tokens are dropped, of 32; in proportion where there are others."""

    merge: Literal["mean", "sum"] = "mean"
    """A cluster of recycled tokens becomes its mean (the code), or its sum (the paper)."""

    def model_post_init(self, _context: object) -> None:
        """Choose the version's positions."""
        if self.positions is None:
            chosen = "compact" if self.version == "v1" else "original"
            object.__setattr__(self, "positions", chosen)

    def before(self, layers: int) -> tuple[int, ...]:
        """See `Method.before`; 0 is where raters are chosen."""
        return (0, *self._cuts(layers))

    def reads(self, layers: int) -> tuple[int, ...]:
        """See `Method.reads`."""
        return tuple(cut - 1 for cut in self._cuts(layers))

    def reduce(self, prompt: Prompt) -> Kept:
        """See `Method.reduce`."""
        shown = len(prompt.visual)
        if prompt.layer == 0:
            prompt.store.update(raters=self._raters(prompt), first=shown, stage=0)
            return Kept(torch.arange(shown, device=prompt.visual.device))
        raters = prompt.store["raters"] - prompt.store["length"] + len(prompt.states)
        rows = prompt.attention(raters)  # [heads, raters, v]
        if self.version == "v2":
            rows = rows[top(rows.sum(dim=(1, 2)), BEST_HEADS)]
        seen = rows.mean(dim=0)  # [raters, v]
        stage, prompt.store["stage"] = prompt.store["stage"], prompt.store["stage"] + 1
        count = self._count(stage, prompt.store["first"], seen)
        if count is None or count >= shown:
            return Kept(torch.arange(shown, device=prompt.visual.device))
        score = seen.mean(dim=0)
        kept = top(score, count)
        if self.version == "v2":
            return Kept(kept)
        return self._recycle(prompt, score, kept)

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`; of the rank's rule nothing is known beforehand, so none is dropped."""
        count, counts, cuts = spec.visual, [], self._cuts(spec.layers)
        for layer in range(spec.layers):
            if layer in cuts and self.mode == "fixed":
                kept = min(self._budgets(spec.visual)[cuts.index(layer)], count - 1)
                kept = max(1, kept)
                merged = self._clusters(count - kept) if self.version == "v1" else 0
                count = kept + merged
            counts.append(count)
        return tuple(counts)

    def fit(self, budget: float, spec: Spec) -> Self:
        """See `Method.fit`; where the rank decides, no setting does."""
        return self if self.mode == "rank" else super().fit(budget, spec)

    def most(self, spec: Spec) -> int:
        """See `Method.most`: budgets are of 576 tokens, however many a picture has."""
        return PATCHES

    def _cuts(self, layers: int) -> tuple[int, ...]:
        """Say before which layers tokens are dropped, never the first."""
        return scaled([stage + 1 for stage in self.stages], DEPTH, layers, least=1)

    def _raters(self, prompt: Prompt) -> Tensor:
        """Choose the words behind the pictures that its tokens resemble more than most [raters].

        Where no word stands out the last one rates, and where there is none the last token.
        """
        words = prompt.question
        prompt.store["length"] = len(prompt.states)
        if len(words) == 0:
            return prompt.last
        seen, said = prompt.states[prompt.visual].float(), prompt.states[words].float()
        rating = (seen @ said.T).softmax(dim=-1).mean(dim=0)  # [words]
        chosen = words[rating > rating.mean()]
        return chosen if len(chosen) else words[-1:]

    def _count(self, stage: int, first: int, seen: Tensor) -> int | None:
        """Say how many tokens go on; None for all."""
        shown = seen.shape[1]
        if self.mode == "fixed":
            return max(1, min(self._budgets(first)[stage], shown - 1))
        rank = int(torch.linalg.matrix_rank(seen.float()))
        return None if rank == shown else max(1, min(int(rank * RANK_SCALE), shown - 1))

    def _budgets(self, visual: int) -> tuple[int, ...]:
        """Scale the code's budgets to a picture's tokens; between two of them, on a line."""
        known = BUDGETS[self.version]
        if self.budget in known and visual == PATCHES:
            return known[self.budget]
        points = {0: (0, 0, 0), **dict(sorted(known.items())), PATCHES: (PATCHES,) * 3}
        below = max(point for point in points if point <= min(self.budget, PATCHES))
        above = min(point for point in points if point >= min(self.budget, PATCHES))
        part = (min(self.budget, PATCHES) - below) / max(1, above - below)
        ends = zip(points[below], points[above], strict=True)
        return tuple(
            max(1, round((low + part * (high - low)) * visual / PATCHES)) for low, high in ends
        )

    @staticmethod
    def _clusters(pruned: int) -> int:
        """Say into how many tokens those are merged that are taken up again."""
        taken = min(pruned, int(RECYCLED * pruned) + 1)
        return min(taken, int(CLUSTERED * taken) + 1)

    def _recycle(self, prompt: Prompt, score: Tensor, kept: Tensor) -> Kept:
        """Merge the best of the pruned into clusters, which come behind what is kept."""
        pruned = torch.ones_like(score, dtype=torch.bool).index_fill(0, kept, False)
        places = pruned.nonzero().squeeze(1)
        taken = places[top(score[places], int(RECYCLED * len(places)) + 1)]
        states = prompt.states[prompt.visual]
        merged = cluster(states[taken], self._clusters(len(places)), self.merge)
        both = torch.cat([states[kept], merged])
        # Merged ones come behind all that is kept, so they take the last places that are free, and
        # what was kept behind the first of these moves up.
        slots = torch.cat([kept, places[len(places) - len(merged) :]]).sort().values
        return Kept(slots, both)


def cluster(states: Tensor, count: int, merge: str) -> Tensor:
    """Merge tokens around the peaks of their density [count, d].

    Dense is what has near neighbours, itself among them; a peak is dense, and far from what is
    denser.

    Source: Gumpest/SparseVLMs at 26a5f48, utils.py; there random numbers below a millionth break
    ties, here the order does.

    Args:
        states: The tokens [n, d].
        count: Clusters; also how many neighbours make a density.
        merge: `mean` or `sum`.
    """
    points = states.float()
    exact = "donot_use_mm_for_euclid_dist"  # products of large states leave no small distance
    distance = torch.cdist(points, points, compute_mode=exact) / points.shape[1] ** 0.5  # [n, n]
    near = distance.topk(min(count, len(points)), dim=1, largest=False).values
    density = (-near.square().mean(dim=1)).exp()
    order = density.sort(descending=True, stable=True).indices
    place = torch.empty_like(order).index_copy(
        0, order, torch.arange(len(order), device=order.device)
    )
    denser = place[None, :] < place[:, None]
    apart = distance.masked_fill(~denser, torch.inf).min(dim=1).values
    apart = torch.where(apart.isinf(), distance.max(), apart)
    centres = (density * apart).sort(descending=True, stable=True).indices[:count]
    nearest = distance[:, centres].argmin(dim=1)
    nearest[centres] = torch.arange(len(centres), device=nearest.device)
    member = functional.one_hot(nearest, len(centres)).T.float()  # [count, n]
    merged = member @ points
    if merge == "mean":
        merged = merged / member.sum(dim=1, keepdim=True)
    return merged.to(states)
