"""What a model sees of pictures: the features that its projector gives, whatever the family.

A picture's size is its height and width in pixels.
"""

import copy
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from victorctl.data.batches import to_model

ANY_SIDE = 256  # in pixels, of random pictures for towers that name no size
TOWERS = ("vision_tower", "vision_model", "image_tower", "video_tower")


def see(model: PreTrainedModel, pixels: Mapping[str, Tensor]) -> Any:
    """Run vision tower and projector.

    Args:
        model: Of any family; native, or Victor.
        pixels: What the processor makes of pictures; more than the model takes is left out.

    Returns:
        The model's output; `pooler_output` holds the visual tokens of every picture or tile.
    """
    encode = _encode(model)
    given = {name: pixels[name] for name in taken(encode, pixels)}
    return encode(**to_model(given, model), return_dict=True)


def _encode(model: PreTrainedModel) -> Callable[..., Any]:
    """Find what sees pictures; where the whole model does not, as PerceptionLM's, its part does."""
    return getattr(model, "get_image_features", None) or model.model.get_image_features


def noise(
    model: PreTrainedModel, picture: tuple[int, int] | None = None, device: str = "cpu"
) -> dict[str, Tensor]:
    """Make a picture of random pixels without a processor.

    Args:
        model: Native.
        picture: Size; by default that of the tower's pictures. Where the family cuts pictures into
            tiles by its configuration there are as many as the size needs; else it changes nothing.
        device: Of the pixels; on `meta` they have no values.
    """
    vision = model.config.vision_config
    tile = _tile(vision)
    grid = getattr(model.config, "image_grid_pinpoints", None)
    picture = (picture or tile) if grid else tile
    sizes = [1, getattr(vision, "num_channels", 3), *tile]
    if grid:
        sizes.insert(1, image_size_to_num_patches(list(picture), grid, tile[0]))
    elif "pixel_attention_mask" in inspect.signature(model.forward).parameters:  # samples first
        sizes.insert(0, 1)
    elif model.config.model_type == "perception_lm":  # tiles second
        sizes.insert(1, 1)
    if device == "meta":
        pixels = torch.empty(sizes, device=device)
    else:
        pixels = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    made = {"pixel_values": pixels, "image_sizes": torch.tensor([picture])}
    return {name: made[name] for name in taken(_encode(model), made)}


def _tile(vision: PreTrainedConfig) -> tuple[int, int]:
    """Find the height and width in pixels of what a tower sees at once."""
    side = getattr(vision, "image_size", None)
    if side is None:  # a tower of timm; some take any size
        side = (getattr(vision, "model_args", None) or {}).get("img_size", ANY_SIDE)
    return tuple(side) if isinstance(side, list | tuple) else (side, side)


def seeing_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy a configuration, for a model that sees pictures as that one, with one layer of text."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    return config


def count_visual_tokens(
    native: type[PreTrainedModel],
    config: PreTrainedConfig,
    picture: tuple[int, int] | None = None,
) -> int | None:
    """Count a picture's visual tokens without any weights.

    Returns:
        None where only the processor decides, or more than shapes must be known.
    """
    with torch.device("meta"):
        model = native(seeing_config(config))
    try:
        pixels = noise(model, picture, "meta")
        sizes = {name: value.tolist() for name, value in pixels.items() if name == "image_sizes"}
        seen = _encode(model)(pixel_values=pixels["pixel_values"], **sizes, return_dict=True)
    except NotImplementedError:
        return None
    return sum(feature[..., 0].numel() for feature in seen.pooler_output)


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


class Outline(NamedTuple):
    """How large the parts of a model are, and how many pictures its tower reads for one."""

    parameters: int
    text: int
    """Of these, in the text model and the output layer."""
    projector: int
    """Of these, between the tower and the text model."""
    tiles: int


def outline(
    native: type[PreTrainedModel],
    config: PreTrainedConfig,
    picture: tuple[int, int] | None = None,
) -> Outline:
    """Measure a model without any weights, from one of its layers.

    Args:
        native: Its class.
        config: Its configuration.
        picture: Size of the picture that is read.
    """
    with torch.device("meta"):
        model = native(seeing_config(config))
    text = model.get_decoder()
    layers = config.get_text_config().num_hidden_layers
    words = [*text.named_parameters(), ("head", model.lm_head.weight)]
    counts = {
        id(value): value.numel() * (layers if name.startswith("layers.") else 1)
        for name, value in words
    }
    towers = [getattr(model.model, name) for name in TOWERS if hasattr(model.model, name)]
    seeing = {id(value): value.numel() for tower in towers for value in tower.parameters()}
    others = {
        id(value): value.numel()
        for value in model.parameters()
        if id(value) not in counts.keys() | seeing.keys()
    }
    said, seen, between = (sum(part.values()) for part in (counts, seeing, others))
    pixels = noise(model, picture, "meta")["pixel_values"]
    return Outline(said + seen + between, said, between, pixels.shape[:-3].numel())
