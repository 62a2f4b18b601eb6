"""The table of model families that can be converted, and the text models known to run in slices."""

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
    placeholder: str
    """Key in `config.json` of the token that stands for visual tokens."""
    remarks: str
    """What a user should know, in one line."""


FAMILIES = (
    Family(
        model_type="llava",
        native="LlavaForConditionalGeneration",
        ours="VictorLlava",
        placeholder="image_token_index",
        remarks="LLaVA 1.5 and its kin, any vision tower of transformers; such as "
        "llava-hf/llava-1.5-7b-hf",
    ),
)

SLICEABLE = {
    *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm4", "llama", "mistral", "mixtral"),
    *("olmo2", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"),
}
"""Text models whose slices were measured to equal the whole; `convert --verify full` tries any."""


def family_of(config: Mapping[str, Any], place: object) -> Family:
    """Find the family of a `config.json`.

    Args:
        config: Its content.
        place: Where it came from, for the error.

    Raises:
        VictorError: If no family is of this kind.
    """
    kind = config.get("model_type")
    known = ", ".join(family.model_type for family in FAMILIES)
    if "mm_vision_tower" in config:
        raise VictorError(
            f"{place}: this is LLaVA's original layout, and victorctl reads that of transformers",
            fix="use the same model from huggingface.co/llava-hf, such as llava-hf/llava-1.5-7b-hf",
        )
    for family in FAMILIES:
        if family.model_type == kind and "text_config" in config and "vision_config" in config:
            return family
    if kind is None:
        problem = f"{place}: config.json names no model_type"
    elif kind in known.split(", "):
        problem = f"{place}: config.json lacks text_config or vision_config"
    else:
        problem = f"{place}: a model of type {kind} is no LLaVA"
    raise VictorError(problem, fix=f"use a model of type {known}; see victorctl families")


def describe() -> list[dict[str, str]]:
    """List the families, a row for each."""
    return [
        {
            "family": family.model_type,
            "class": family.native,
            "becomes": family.ours,
            "placeholder": family.placeholder,
            "remarks": family.remarks,
        }
        for family in FAMILIES
    ]
