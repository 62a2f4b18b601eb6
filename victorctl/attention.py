"""What registers attend to in the layers that still see the picture."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from victorctl.modeling_victor import REGISTER, VISUAL, Tokens, VictorMixin


@torch.inference_mode()
def register_attention(model: VictorMixin, inputs: Mapping[str, Any]) -> Tensor:
    """Read off what registers attend to, layer by layer, as the mean over heads.

    The weights are the model's own: one prompt is read with eager attention, which hands them out.
    They are shares of all that a register attends to, text and other registers included, so that
    those of the visual tokens sum to less than one.

    Shapes: k layers below the drop, r registers, v visual tokens.

    Args:
        model: A Victor model; its attention is as before afterwards.
        inputs: What it takes of one prompt with one picture, not padded. Where the picture is in
            tiles that have registers of their own, their mean is taken.

    Returns:
        Weights on a CPU [k, r, v].
    """
    with _eager(model), _watched(model) as seen:
        how = {"output_attentions": True, "use_cache": False, "logits_to_keep": 1}
        maps = model(**inputs, **how).attentions[: model.victor.drop_layer]  # each [1, heads, t, t]
    (kind,) = (tokens.kind[0].cpu() for tokens in seen)  # [t]
    early = torch.stack([each[0].float().mean(dim=0).cpu() for each in maps])  # [k, t, t]
    weights = early[:, kind == REGISTER][..., kind == VISUAL]  # [k, tiles * r, v]
    return weights.unflatten(1, (-1, model.victor.registers.count)).mean(dim=1)


@contextmanager
def _eager(model: VictorMixin) -> Iterator[None]:
    text = model.get_decoder()
    before = text.config._attn_implementation
    text.set_attn_implementation("eager")
    try:
        yield
    finally:
        text.set_attn_implementation(before)


@contextmanager
def _watched(model: VictorMixin) -> Iterator[list[Tokens]]:
    """Yield a list of what stood where before the drop, which acts as ever."""
    victor, seen = model.victor, []
    before = victor.reduce

    def reduce(hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
        seen.append(tokens)
        return before(hidden, tokens)

    victor.reduce = reduce
    try:
        yield seen
    finally:
        victor.reduce = before
