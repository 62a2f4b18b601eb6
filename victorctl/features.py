"""What a model sees of pictures: the features that its projector gives, whatever the family."""

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from victorctl.data.batches import to_model


def see(model: PreTrainedModel, pixels: Mapping[str, Tensor]) -> Any:
    """Run vision tower and projector.

    Args:
        model: Of any family; native, or Victor.
        pixels: What the processor makes of pictures; more than the model takes is left out.

    Returns:
        The model's output; `pooler_output` holds the visual tokens of every picture or tile.
    """
    given = {name: pixels[name] for name in taken(model.get_image_features, pixels)}
    return model.get_image_features(**to_model(given, model), return_dict=True)


def taken(function: Callable[..., object], offered: Iterable[str]) -> list[str]:
    """Name those of the offered arguments that a function has."""
    known = inspect.signature(function).parameters
    return [name for name in offered if name in known]


def take(left: deque[Tensor], count: int) -> list[Tensor]:
    """Take so many visual tokens from the features that are left, each [tokens, d].

    Where several images are one feature, as in Idefics3, it is cut.
    """
    found = []
    while count > 0:
        feature = left.popleft()
        if len(feature) > count:
            left.appendleft(feature[count:])
        found.append(feature[:count])
        count -= len(found[-1])
    return found
