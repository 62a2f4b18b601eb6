"""The configuration of an original layout, as transformers spells it.

Source: transformers 4.46, models/llava*/convert_llava*_weights_to_hf.py; haotian-liu/LLaVA,
llava/model/llava_arch.py and mm_utils.py; LLaVA-VL/LLaVA-NEXT, the same files.
"""

import re
from collections.abc import Mapping
from typing import Any

from victorctl.checkpoint import refusing_values
from victorctl.errors import VictorError
from victorctl.layouts.recognise import text_type
from victorctl.layouts.towers import Tower, check_count, is_count, own_fields

CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
OLD_ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
NOT_OF_TEXT = {"use_cache"}  # which LLaVA's training switches off
CELLS = re.compile(r"\((\d+)x(\d+)\)")


def target_of(config: Mapping[str, Any], place: str) -> str:
    """Choose the model type that cuts pictures as the original does.

    Raises:
        VictorError: If none does.
    """
    aspect = str(config.get("image_aspect_ratio") or "square")
    merge = str(config.get("mm_patch_merge_type") or "flat")
    if "anyres" not in aspect or _sees_each_whole(config, place):
        return "llava"
    if merge != "spatial_unpad":
        raise VictorError(
            f"{place}: mm_patch_merge_type {merge!r}, and transformers has only spatial_unpad",
            fix="use a model with mm_patch_merge_type spatial_unpad, such as "
            "liuhaotian/llava-v1.6-mistral-7b",
        )
    if aspect == "anyres":
        return "llava_next"
    if aspect != "anyres_max_9" and not re.fullmatch(r"anyres_max_\d+", aspect):
        raise VictorError(
            f"{place}: image_aspect_ratio {aspect!r} is none of pad, anyres and anyres_max_9",
            fix="use a model with one of these, such as lmms-lab/llava-onevision-qwen2-7b-ov",
        )
    return "llava_onevision"


def _sees_each_whole(config: Mapping[str, Any], place: str) -> bool:
    """Say whether a model is an interleave: taught on several pictures at once, none of them cut.

    Such configurations are those of lmms-lab's other models on Qwen, and only the name tells.
    """
    named = "interleave" in re.split(r"[^a-z0-9]+", place.rpartition("/")[2].lower())
    alike = config.get("image_aspect_ratio") == "anyres" and text_type(config, place) == "qwen2"
    return named and alike


def translated(config: Mapping[str, Any], tower: Tower, place: str) -> dict[str, Any]:
    """Translate a configuration; vocabulary and token ids are still the original's.

    Raises:
        VictorError: If it has no translation, or tower and projector do not fit.
    """
    target = target_of(config, place)
    width = tower.config["hidden_size"]
    if config.get("mm_hidden_size", width) != width:
        raise VictorError(
            f"{place}: mm_hidden_size {config['mm_hidden_size']}, and its vision tower is "
            f"{width} wide",
            fix="add --vision-tower SOURCE with the tower that it was trained with",
        )
    feature = config.get("mm_vision_select_feature") or "patch"
    whole = feature == "cls_patch" or not tower.is_clip
    made = {
        "architectures": [CLASSES[target]],
        "model_type": target,
        "text_config": _text(config, place),
        "vision_config": dict(tower.config),
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "full" if whole else "default",
        "vision_feature_layer": config.get("mm_vision_select_layer", -2) if tower.is_clip else -1,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    if dtype := config.get("torch_dtype") or config.get("dtype"):
        made["dtype"] = dtype
    if target != "llava_onevision":
        made["image_seq_length"] = tower.visual_tokens + (whole and tower.is_clip)
    if target != "llava":
        made["image_grid_pinpoints"] = _pinpoints(config, tower, place)
        made["use_image_newline_parameter"] = True
    if target == "llava_onevision":
        made["vision_aspect_ratio"] = config["image_aspect_ratio"]
    _check_readable(made, f"{place}: config.json")
    return made


def _check_readable(made: Mapping[str, Any], place: str) -> None:
    """Refuse values that transformers makes nothing of."""
    from transformers import AutoConfig

    with refusing_values(place):
        AutoConfig.for_model(**made)


def _text(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Take out what is the language model's own."""
    from transformers import CONFIG_MAPPING

    kind = text_type(config, place)
    known = {*own_fields(CONFIG_MAPPING[kind]), *TOKENS, *OLD_ROPE} - NOT_OF_TEXT
    text = {key: value for key, value in config.items() if key in known}
    defaults = CONFIG_MAPPING[kind]().to_dict()
    for key in ("vocab_size", "hidden_size", "num_hidden_layers"):
        text.setdefault(key, defaults[key])
        check_count(text, key, place)
    if type(theta := text.get("rope_theta", 1.0)) not in (int, float):
        raise VictorError(
            f"{place}: config.json: rope_theta {theta!r} is no number",
            fix="use another copy of the model",
        )
    tied = bool(config.get("tie_word_embeddings", False))
    return text | {"model_type": kind, "tie_word_embeddings": tied}


def _pinpoints(config: Mapping[str, Any], tower: Tower, place: str) -> list[list[int]]:
    """List the sizes that pictures are cut at; the original has widths first, transformers heights.

    Where every size is there in both directions, as in all published models, the list stays as it
    is, which is what llava-hf's copies have.
    """
    listed = config.get("image_grid_pinpoints")
    if isinstance(listed, str) and (cells := CELLS.findall(listed)):
        first, last = ([int(side) for side in cell] for cell in (cells[0], cells[-1]))
        side = tower.config["image_size"]
        listed = [
            [wide * side, high * side]
            for wide in range(first[0], last[0] + 1)
            for high in range(first[1], last[1] + 1)
        ]
    if not _are_sizes(listed):
        raise VictorError(
            f"{place}: image_grid_pinpoints {listed!r} is no list of sizes",
            fix="use another copy of the model",
        )
    turned = [[high, wide] for wide, high in listed]
    return (
        [list(pair) for pair in listed] if sorted(turned) == sorted(map(list, listed)) else turned
    )


def _are_sizes(listed: Any) -> bool:
    return (
        isinstance(listed, list)
        and bool(listed)
        and all(
            isinstance(pair, list | tuple) and len(pair) == 2 and all(is_count(n) for n in pair)
            for pair in listed
        )
    )
