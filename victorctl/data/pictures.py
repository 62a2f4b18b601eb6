"""Pictures as tensors: one form of what the processors of all families make of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import ProcessorMixin

from victorctl.data.conversations import Row


class Manner(NamedTuple):
    """How a processor is to be asked.

    Args:
        nested: It takes a list of pictures for each text, and not one list for all.
        tensors: It stacks what pictures become.
        images: More that its processor of pictures is told.
    """

    nested: bool = True
    tensors: bool = True
    images: dict[str, Any] = {}  # noqa: RUF012


USUAL = Manner()
MANNERS = {
    "GotOcr2Processor": Manner(nested=False),  # a list for a text is the pages of one picture
    "PerceptionLMProcessor": Manner(tensors=False),  # tiles, and nothing that says how many
    "VideoLlavaProcessor": Manner(images={"return_legacy_image_output": False}),
}
"""By class, of those that are not asked as usual."""


def process(row: Row, processor: ProcessorMixin) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Make a row's tensors, and for each picture the tokens that stand for it."""
    if not row.images:
        return {}, []
    manner, pictures = MANNERS.get(type(processor).__name__, USUAL), row.pictures()
    processed = processor(
        images=[pictures] if manner.nested else pictures,
        text=[processor.image_token * len(row.images)],
        images_kwargs={"return_tensors": "pt" if manner.tensors else None, **manner.images},
        text_kwargs={"return_tensors": None},  # so tensors are what the pictures became
        return_text_replacement_offsets=True,
    )
    if not manner.tensors:  # [tiles, 1, ...]: each as if a picture of one tile
        processed["pixel_values"] = torch.cat(list(processed["pixel_values"]))[:, None]
    images = {name: value for name, value in processed.items() if isinstance(value, Tensor)}
    texts = [picture["replacement"] for picture in processed["text_replacement_offsets"][0]]
    return images, processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
