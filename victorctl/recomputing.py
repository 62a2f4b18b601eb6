"""Activation checkpointing of layers that read a cache.

transformers' own takes the cache away from a layer that is to be computed again, and with it the
prefix that questions share.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache


@contextmanager
def recomputing(text: nn.Module) -> Iterator[None]:
    """Keep only what enters the layers of a Victor text model for the backward pass."""
    run = text.victor.keep_gates(partial(checkpoint, use_reentrant=False))
    for number, layer in enumerate(text.layers):
        layer.forward = partial(_again, run, layer.forward, number)
    try:
        yield
    finally:
        for layer in text.layers:
            del layer.forward


def _again(
    run: Callable[..., Any], forward: Callable[..., Any], number: int, *given: Any, **named: Any
) -> Tensor:
    """Run a layer so that its inner states are computed once more for the backward pass.

    The keys and values that it had before are put back for that.

    Args:
        run: Torch's function for it.
        forward: The layer's own.
        number: The layer's.
        given: What the layer is given, as all that follows.
        named: By name; the cache is one of them.
    """
    (window,) = (value for value in named.values() if isinstance(value, DynamicCache))
    own = getattr(window, "cache", window).layers[number]
    before = copy.copy(vars(own))

    def compute(*inputs: Any, **others: Any) -> Tensor:
        vars(own).update(before)
        return forward(*inputs, **others)

    return run(compute, *given, **named)
