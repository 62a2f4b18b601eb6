"""A tiny processor of every family's own class, with the sizes of `tests.families`' towers.

Those that need torchvision or num2words ask for it, and tests of them are skipped without.
"""

from collections.abc import Callable
from typing import Any

import pytest
import transformers
from transformers import (
    CLIPImageProcessorPil,
    Idefics3Processor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from tests import families
from tests.tiny import TEMPLATE, tiny_processor, tiny_tokenizer

SIDE = {"height": 32, "width": 32}
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": SIDE}
ANY_SIZE = {**CROPPED, "image_grid_pinpoints": families.GRID}
CLASS_TOKEN = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def chat(placeholder: str) -> str:
    """Write a template that spells pictures so."""
    return TEMPLATE.replace("<image>", placeholder)


def sees_videos(name: str, **settings: Any) -> Any:
    """Make a processor of videos, which torchvision is needed for."""
    pytest.importorskip("torchvision", reason="this family's processor needs torchvision")
    return getattr(transformers, name)(**settings)


def vipllava() -> ProcessorMixin:
    """LLaVA's own."""
    return tiny_processor()


def llava_next() -> ProcessorMixin:
    """With the tiny tower's tiles."""
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(**ANY_SIZE),
        tiny_tokenizer(),
        patch_size=8,
        **CLASS_TOKEN,
        chat_template=TEMPLATE,
    )


def llava_next_video() -> ProcessorMixin:
    """As LLaVA-NeXT's, and videos."""
    return transformers.LlavaNextVideoProcessor(
        sees_videos("LlavaNextVideoVideoProcessor", **CROPPED),
        transformers.LlavaNextImageProcessor(**ANY_SIZE),
        tiny_tokenizer("<image>", ["<video>"]),
        patch_size=8,
        **CLASS_TOKEN,
        chat_template=TEMPLATE,
    )


def llava_onevision() -> ProcessorMixin:
    """Tiles where a row has one picture, none where it has several."""
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=families.GRID),
        tiny_tokenizer("<image>", ["<video>"]),
        sees_videos("LlavaOnevisionVideoProcessor", size=SIDE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def video_llava() -> ProcessorMixin:
    """One size."""
    return transformers.VideoLlavaProcessor(
        transformers.VideoLlavaImageProcessor(**CROPPED),
        sees_videos("VideoLlavaVideoProcessor", **CROPPED),
        tiny_tokenizer("<image>", ["<video>"]),
        patch_size=8,
        **CLASS_TOKEN,
        chat_template=TEMPLATE,
    )


def aya_vision() -> ProcessorMixin:
    """Chats spell a picture otherwise than its visual tokens, and that is no token."""
    tiles = [f"TILE_{number}" for number in range(1, 5)]
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", *tiles]
    return transformers.AyaVisionProcessor(
        _tiles(),
        tiny_tokenizer("<|IMG_PATCH|>", marks),
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=TEMPLATE,
    )


def _tiles(**settings: Any) -> Any:
    """Cut pictures into at most four tiles, and look at the whole, as three families do."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )

    return GotOcr2ImageProcessorPil(
        **{"size": SIDE, "crop_to_patches": True, "max_patches": 4, **settings}
    )


def cohere2_vision() -> ProcessorMixin:
    """A break after every tile."""
    pytest.importorskip("torchvision", reason="this family's processor needs torchvision")
    named = {
        **{"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"},
        **{"image_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>"},
    }
    return transformers.Cohere2VisionProcessor(
        transformers.Cohere2VisionImageProcessor(size=SIDE, max_patches=4, patch_size=2),
        tiny_tokenizer("<|IMG_PATCH|>", **named),
        chat_template=chat("<|IMG_PATCH|>"),
    )


def fast_vlm() -> ProcessorMixin:
    """LLaVA's own, without a class token."""
    return LlavaProcessor(
        CLIPImageProcessorPil(**CROPPED),
        tiny_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def got_ocr2() -> ProcessorMixin:
    """Always 256 visual tokens a picture; its folders have no chat template, so one is added."""
    return transformers.GotOcr2Processor(
        _tiles(size={"height": 256, "width": 256}, crop_to_patches=False),
        tiny_tokenizer("<imgpad>", ["<img>", "</img>", "<|im_start|>", "<|im_end|>"]),
        chat_template=chat("<img><imgpad></img>"),
    )


def idefics3() -> ProcessorMixin:
    """Tiles of 32 pixels, words between them."""
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, resample=0
    )
    return Idefics3Processor(pictures, tiny_tokenizer(), image_seq_len=4, chat_template=TEMPLATE)


def internvl() -> ProcessorMixin:
    """All tiles of a picture one after the other."""
    named = {
        **{"start_image_token": "<img>", "end_image_token": "</img>"},
        **{"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
    }
    return transformers.InternVLProcessor(
        _tiles(),
        tiny_tokenizer("<IMG_CONTEXT>", **named),
        sees_videos("InternVLVideoProcessor", size=SIDE),
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>"),
    )


def mistral3() -> ProcessorMixin:
    """Rows of patches, a token at the end of each."""
    pytest.importorskip("torchvision", reason="this family's processor needs torchvision")
    return transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8),
        tiny_tokenizer("[IMG]", ["[IMG_BREAK]", "[IMG_END]"]),
        patch_size=8,
        spatial_merge_size=2,
        chat_template=chat("[IMG]"),
    )


def perception_lm() -> ProcessorMixin:
    """A thumbnail and as many tiles as a picture needs."""
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    return transformers.PerceptionLMProcessor(
        sees_videos("PerceptionLMVideoProcessor", size=SIDE),
        transformers.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tiny_tokenizer("<|image|>", **named),
        patch_size=8,
        pooling_ratio=2,
        chat_template=chat("<|image|>"),
    )


def smolvlm() -> ProcessorMixin:
    """As Idefics3's, and videos."""
    pytest.importorskip("num2words", reason="this family's processor needs num2words")
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**sizes, resample=0),
        tiny_tokenizer("<image>", marks),
        sees_videos("SmolVLMVideoProcessor", **sizes),
        image_seq_len=4,
        chat_template=TEMPLATE,
    )


PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    made.__name__: made
    for made in (
        *(vipllava, llava_next, llava_next_video, llava_onevision, video_llava, aya_vision),
        *(cohere2_vision, fast_vlm, got_ocr2, idefics3, internvl, mistral3, perception_lm, smolvlm),
    )
}
"""By model type."""

QUICK = ("llava_next", "aya_vision", "idefics3")  # and each of them in a way of its own
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROCESSORS]
"""Their names, for tests that are worth repeating for every family."""

VISION = {"got_ocr2": {"image_size": 256, "patch_size": 4, "global_attn_indexes": []}}
"""What a tower is where the processor says how many visual tokens it gives."""


def tiny_family(name: str) -> PreTrainedModel:
    """Build a family's native class, for the pictures that its processor makes."""
    if name in families.TIMM:
        pytest.importorskip("timm", reason="this family's tower needs timm")
    return families.tiny_family(name, **VISION.get(name, {}))
