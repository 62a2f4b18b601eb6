"""FastV: drop the visual tokens that the last token hardly attends to."""

from typing import ClassVar

from pydantic import Field

from victorctl.methods.base import Kept, Method, Prompt, Spec, Stage, top


class FastV(Method):
    """Rank visual tokens once, by the attention that the last token pays them, and keep the top.

    Source: Chen et al. 2024, arXiv 2403.06764; mean over heads, last query and sorted survivors
    follow pkunlp-icler/FastV at d165972, modeling_llama.py.
    """

    stage: ClassVar[Stage] = "layers"
    source: ClassVar[str] = "Chen et al. 2024, arXiv 2403.06764; pkunlp-icler/FastV at d165972"

    layer: int = Field(2, ge=1)
    """Layers that see every visual token; the last of them ranks (K in the paper)."""

    count: int = Field(288, ge=1)
    """Visual tokens that go on, for each picture of a prompt; ranked together."""

    def before(self, layers: int) -> tuple[int, ...]:
        """See `Method.before`."""
        return (min(self.layer, layers),)

    def reads(self, layers: int) -> tuple[int, ...]:
        """See `Method.reads`."""
        return tuple(cut - 1 for cut in self.before(layers))

    def reduce(self, prompt: Prompt) -> Kept:
        """See `Method.reduce`."""
        score = prompt.attention(prompt.last).mean(dim=0)[0]  # [v]
        return Kept(top(score, self.count * prompt.pictures))

    def plan(self, spec: Spec) -> tuple[int, ...]:
        """See `Method.plan`."""
        stay, late = min(self.count, spec.visual), max(0, spec.layers - self.layer)
        return (spec.visual,) * (spec.layers - late) + (stay,) * late
