"""PyramidDrop: keep half of the visual tokens after each quarter of the language model."""

from typing import ClassVar

from pydantic import Field

from victorctl.methods.base import (
    Kept,
    Layers,
    Method,
    Positions,
    Prompt,
    Spec,
    Stage,
    scaled,
    share,
    top,
)

DEPTH = 32  # layers of the model that the stages are given for


class PyramidDrop(Method):
    """Drop a share of the visual tokens at several layers, by the last token's attention.

    Source: Xing et al. 2024, arXiv 2410.17247.
    """

    stage: ClassVar[Stage] = "layers"
    source: ClassVar[str] = "Xing et al. 2024, arXiv 2410.17247"
    unverified: ClassVar[tuple[str, ...]] = (
        "stages at layers 8, 16 and 24 of 32, half of the tokens at each",
        "ranked by the last token's attention in the layer before the cut, mean over heads",
        "positions counted anew in every stage",
    )
    knob: ClassVar[str | None] = "percent"

    positions: Positions = "compact"
    """What goes on keeps its position, or each layer counts what it holds (compact)."""

    stages: Layers = Field((8, 16, 24), min_length=1)
    """Layers before which tokens are dropped, of 32; in proportion where there are others."""

    percent: int = Field(50, ge=1, le=100)
    """Share of the tokens that go on at each stage, in per cent."""

    def before(self, layers: int) -> tuple[int, ...]:
        """See `Method.before`."""
        return scaled(self.stages, DEPTH, layers, least=1)

    def reads(self, layers: int) -> tuple[int, ...]:
        """See `Method.reads`."""
        return tuple(cut - 1 for cut in self.before(layers))

    def reduce(self, prompt: Prompt) -> Kept:
        """See `Method.reduce`."""
        score = prompt.attention(prompt.last).mean(dim=0)[0]  # [v]
        return Kept(top(score, share(self.percent / 100, len(score))))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        count, counts = spec.visual, []
        cuts = self.before(spec.layers)
        for layer in range(spec.layers):
            if layer in cuts:
                count = share(self.percent / 100, count)
            counts.append(count)
        return tuple(counts)

    def most(self, spec: Spec) -> int:
        """See `Method.most`: the knob is per cent."""
        return 100
