"""Attention rows of any layer, whatever computes its attention: from its own queries and keys."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WATCHED = "victorctl_watched"
"""Name under which transformers finds our attention: it notes queries and keys, and passes on."""


@dataclass(frozen=True)
class Seen:
    """What one layer compared with what, after all that is done to queries and keys.

    Args:
        query: [b, heads, t, e].
        key: [b, heads or fewer that share, t, e].
        scaling: Of the products.
        softcap: Bound of the scaled products, where there is one.
        window: How many tokens a token sees, itself included, where that is bounded.
        mask: The layer's own, added to the products [b or 1, 1, t, t], or what may be seen, if it
            has four dimensions; None where the caller knows what may be seen.
    """

    query: Tensor
    key: Tensor
    scaling: float
    softcap: float | None
    window: int | None
    mask: Tensor | None

    def rows(self, row: int, queries: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Compute what some tokens attend to, over all that they see, in float32.

        Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1.

        Args:
            row: Of the batch.
            queries: Which tokens ask [q].
            allowed: What they may see [q, t], where the layer has no mask of its own.

        Returns:
            Shares [heads, q, t]; each row sums to one.
        """
        query = self.query[row][:, queries].float()  # [heads, q, e]
        key = self.key[row].float().repeat_interleave(len(query) // self.key.shape[1], dim=0)
        scores = query @ key.transpose(1, 2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.mask is not None:
            mask = self.mask[row if len(self.mask) > 1 else 0, 0][queries][:, : scores.shape[-1]]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -torch.inf)
            else:
                scores = scores + mask.float()
        elif allowed is not None:
            if self.window is not None:
                column = torch.arange(scores.shape[-1], device=scores.device)
                allowed = allowed & (column > queries[:, None] - self.window)
            scores = scores.masked_fill(~allowed, -torch.inf)
        return scores.softmax(dim=-1)


class Watch:
    """Watches layers' attention while they are read.

    Args:
        attentions: The attention module of each layer that is watched, by the layer's number.
    """

    open: ClassVar[dict[int, list[tuple["Watch", int]]]] = {}
    """Who watches an attention module, by its identity, and as which layer."""

    config: ClassVar[dict[int, Any]] = {}
    """What a watched module was set to."""

    def __init__(self, attentions: Mapping[int, nn.Module]) -> None:
        self.attentions = attentions
        self.seen: dict[int, Seen] = {}

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Note queries and keys until the end; what is computed stays the same."""
        with ExitStack() as stack:
            stack.callback(self.seen.clear)
            for layer, module in self.attentions.items():
                self._open(layer, module)
                stack.callback(self._close, layer, module)
            yield self

    def _open(self, layer: int, module: nn.Module) -> None:
        if id(module) not in Watch.open:
            Watch.config[id(module)] = module.config
            module.config = copy(module.config)
            module.config._attn_implementation_internal = WATCHED
        Watch.open.setdefault(id(module), []).append((self, layer))

    def _close(self, layer: int, module: nn.Module) -> None:
        Watch.open[id(module)].remove((self, layer))
        if not Watch.open[id(module)]:
            module.config = Watch.config.pop(id(module))
            del Watch.open[id(module)]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Note what is compared during a prefill, and let the usual attention do its work."""
    if query.shape[2] > 1 and query.shape[2] == key.shape[2]:
        seen = Seen(
            query,
            key,
            kwargs.get("scaling") or query.shape[-1] ** -0.5,
            kwargs.get("softcap"),
            kwargs.get("sliding_window"),
            attention_mask if attention_mask is not None and attention_mask.dim() == 4 else None,
        )
        for watch, layer in Watch.open[id(module)]:
            watch.seen[layer] = seen
    name = Watch.config[id(module)]._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_of(module))
    return attend(module, query, key, value, attention_mask, **kwargs)


def eager_of(module: nn.Module) -> Any:
    """Find the eager attention of the file that a module's class comes from."""
    return sys.modules[type(module).__module__].eager_attention_forward


def attention_of(layer: nn.Module) -> nn.Module:
    """Find the attention of a layer, of the language model or of a tower."""
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


ALL_ATTENTION_FUNCTIONS.register(WATCHED, _attend)
