"""The tables of model families that can be converted, and of text models that were tried."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from victorctl.errors import VictorError


@dataclass(frozen=True)
class Family:
    """Models that share an architecture, and so a class."""

    model_type: str
    """In `config.json`; also the family's name."""
    native: str
    """Class in transformers."""
    ours: str
    """Class in `modeling_victor.py`."""
    remarks: str
    """What a user should know, in one line."""
    fixed: bool = False
    """Every picture becomes as many visual tokens as the tower has patches."""


FAMILIES = (
    Family(
        "llava",
        "LlavaForConditionalGeneration",
        "VictorLlava",
        "LLaVA 1.5 and its kin (BakLLaVA, interleave, LLaVA-Med), any vision tower of "
        "transformers; such as llava-hf/llava-1.5-7b-hf",
        fixed=True,
    ),
    Family(
        "vipllava",
        "VipLlavaForConditionalGeneration",
        "VictorVipLlava",
        "features of several layers of the tower",
        fixed=True,
    ),
    Family(
        "llava_next",
        "LlavaNextForConditionalGeneration",
        "VictorLlavaNext",
        "LLaVA 1.6: pictures of any size, in tiles; such as llava-hf/llava-v1.6-mistral-7b-hf",
    ),
    Family(
        "llava_next_video",
        "LlavaNextVideoForConditionalGeneration",
        "VictorLlavaNextVideo",
        "pictures and videos",
    ),
    Family(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "VictorLlavaOnevision",
        "pictures of any size, several pictures, videos; such as "
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    Family(
        "video_llava",
        "VideoLlavaForConditionalGeneration",
        "VictorVideoLlava",
        "pictures and videos; videos with nothing between them count as one",
        fixed=True,
    ),
    Family(
        "aya_vision",
        "AyaVisionForConditionalGeneration",
        "VictorAyaVision",
        "registers for every tile",
    ),
    Family(
        "cohere2_vision",
        "Cohere2VisionForConditionalGeneration",
        "VictorCohere2Vision",
        "registers for every tile",
    ),
    Family(
        "fast_vlm",
        "FastVlmForConditionalGeneration",
        "VictorFastVlm",
        "pictures of one size; its tower needs timm",
    ),
    Family(
        "got_ocr2",
        "GotOcr2ForConditionalGeneration",
        "VictorGotOcr2",
        "one set of registers for all tiles of a picture; finetune and eval need a chat template, "
        "which its folders lack",
    ),
    Family(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        "VictorIdefics3",
        "registers for every tile",
    ),
    Family(
        "internvl",
        "InternVLForConditionalGeneration",
        "VictorInternVL",
        "one set of registers for all tiles of a picture",
    ),
    Family(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "VictorMistral3",
        "pictures of any size; the tokens that end their rows stay",
    ),
    Family(
        "perception_lm",
        "PerceptionLMForConditionalGeneration",
        "VictorPerceptionLM",
        "pictures and videos, one set of registers for all tiles or frames, and for pictures with "
        "nothing between them; its tower needs timm",
    ),
    Family(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        "VictorSmolVLM",
        "registers for every tile",
    ),
)


MARKS = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")  # of LLaVA's original layout
OWN = re.compile(r"Llava\w+ForCausalLM")  # its classes

BOTH_WAYS = "visual tokens of an image see each other both ways, and registers would not"
CROSS = "pictures enter by cross-attention: there are no visual tokens to drop"
DEPTH = "positions have three dimensions, and late layers read features of the tower again"
PLANE = "positions have three dimensions"
QUERIES = "a Q-Former leaves few visual tokens already"
VOCABULARY = "pictures are words of its vocabulary"

REFUSED = {
    "blip-2": QUERIES,
    "chameleon": VOCABULARY,
    "emu3": VOCABULARY,
    "fuyu": "it has no vision tower, and reads pixels as words",
    "gemma3": BOTH_WAYS,
    "glm4v": PLANE,
    "instructblip": QUERIES,
    "mllama": CROSS,
    "paligemma": BOTH_WAYS,
    "qwen2_5_vl": PLANE,
    "qwen2_vl": PLANE,
    "qwen3_vl": DEPTH,
}
"""Kinds of models that see pictures, and why they cannot become Victor models."""


@dataclass(frozen=True)
class Backbone:
    """A kind of text model that was tried: every law holds for it, or it is refused."""

    model_type: str
    """Of `text_config` in `config.json`."""
    remarks: str = ""
    """What sets it apart; why, where it is refused."""
    refused: bool = False
    scales_embeddings: bool = False
    """Its embedding layer multiplies by the root of the width, and so do tokens that are drawn."""


OTHER_BACKBONE = (
    "use a model with another text model, such as Llama, Mistral, Qwen2, Qwen3 or Gemma; "
    "see victorctl families"
)
WINDOW = "a sliding window"
MIXED = "a sliding window in some layers"

STATE = "some of its layers keep a running state in place of keys and values"
NORM = "its last norm has another name, and would end every slice"
SCALED = "it multiplies what enters its first layer, and would again in every slice"
SHARED = "late layers read keys and values of early ones, and token ids again"

BACKBONES = (
    Backbone("cohere", "attention and MLP side by side"),
    Backbone("cohere2", f"{MIXED}, no positions in the others"),
    Backbone("gemma", "scaled embeddings", scales_embeddings=True),
    Backbone(
        "gemma2", f"{MIXED}; scores are capped, so attention is eager", scales_embeddings=True
    ),
    Backbone("gemma3_text", f"{MIXED}, with rotations of their own", scales_embeddings=True),
    Backbone("glm4", "positions in part of a head"),
    Backbone("llama", "as in LLaVA 1.5"),
    Backbone("ministral", MIXED),
    Backbone("mistral", WINDOW),
    Backbone("mixtral", f"experts, {WINDOW}"),
    Backbone("olmo2"),
    Backbone("olmo3", MIXED),
    Backbone("phi3", WINDOW),
    Backbone("qwen2", f"{MIXED}, if so configured"),
    Backbone("qwen2_moe", "experts, of which one is shared"),
    Backbone("qwen3", f"{MIXED}, if so configured"),
    Backbone("qwen3_moe", "experts"),
    Backbone("smollm3", "no positions in some layers"),
    Backbone("stablelm", "positions in part of a head"),
    Backbone("starcoder2", WINDOW),
    Backbone("gemma3n_text", SHARED, refused=True),
    Backbone("gemma4_text", SHARED, refused=True),
    Backbone("gpt_neox", NORM, refused=True),
    Backbone("granite", SCALED, refused=True),
    Backbone("granitemoe", SCALED, refused=True),
    Backbone("jamba", STATE, refused=True),
    Backbone("lfm2", STATE, refused=True),
    Backbone("nanochat", "it norms what enters its first layer, and would again", refused=True),
    Backbone("persimmon", NORM, refused=True),
    Backbone("phi", NORM, refused=True),
    Backbone("qwen3_next", STATE, refused=True),
    Backbone("recurrent_gemma", STATE, refused=True),
)
"""Every text model that was tried; `convert --verify full` tries any other."""


def backbone_of(model_type: str) -> Backbone | None:
    """Find what is known of a kind of text model; None where nobody tried it."""
    return next((known for known in BACKBONES if known.model_type == model_type), None)


def check_backbone(model_type: str, place: object) -> None:
    """Refuse a text model that was tried in vain.

    Raises:
        VictorError: If it was, with the reason.
    """
    known = backbone_of(model_type)
    if known and known.refused:
        raise VictorError(
            f"{place}: its text model, {model_type}, cannot be run in slices: {known.remarks}",
            fix=OTHER_BACKBONE,
        )


def is_original(config: Mapping[str, Any]) -> bool:
    """Say whether a `config.json` is of LLaVA's original layout; old ones say `llava`, too."""
    named = any(OWN.fullmatch(name) for name in architectures(config) or ())
    return "text_config" not in config and (named or any(key in config for key in MARKS))


def architectures(config: Mapping[str, Any]) -> list[str] | None:
    """List the classes that a model is said to be of; None where that is no list of names."""
    listed = config.get("architectures") or []
    whole = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    return listed if whole else None


def family_of(config: Mapping[str, Any], place: object) -> Family:
    """Find the family of a `config.json`.

    Args:
        config: Its content.
        place: Where it came from, for the error.

    Raises:
        VictorError: If no family is of this kind.
    """
    kind = config.get("model_type")
    known = {family.model_type: family for family in FAMILIES}
    if is_original(config):
        raise VictorError(
            f"{place}: this is LLaVA's original layout, which only convert and inspect read",
            fix=f"victorctl convert {place} --out FOLDER",
        )
    whole = all(isinstance(config.get(part), dict) for part in ("text_config", "vision_config"))
    if not isinstance(kind, str):
        problem = f"{place}: config.json names no model_type"
    elif kind in REFUSED:
        problem = f"{place}: a model of type {kind} cannot drop visual tokens: {REFUSED[kind]}"
    elif kind not in known:
        problem = f"{place}: a model of type {kind} is of no family that can be converted"
    elif not whole:
        problem = f"{place}: config.json lacks text_config or vision_config"
    else:
        return known[kind]
    raise VictorError(problem, fix="use a model of a family that victorctl families lists")


def describe() -> dict[str, list[dict[str, str]]]:
    """List the families, those that are refused, and the text models that were tried."""
    return {
        "families": [
            {
                "family": family.model_type,
                "class": family.native,
                "becomes": family.ours,
                "remarks": family.remarks,
            }
            for family in FAMILIES
        ],
        "refused": [{"refused": name, "remarks": reason} for name, reason in REFUSED.items()],
        "text_models": [
            {
                "text_model": known.model_type,
                "verdict": "refused" if known.refused else "tested",
                "remarks": known.remarks,
            }
            for known in BACKBONES
        ],
    }
