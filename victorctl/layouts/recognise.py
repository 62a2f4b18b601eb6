"""Tell LLaVA's original layouts from that of transformers, and refuse what cannot be translated."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from victorctl.errors import VictorError
from victorctl.families import architectures
from victorctl.layouts import files
from victorctl.sources import ADAPTER, BASE_INDEX, BASE_WEIGHTS, BIN_INDEX, Source, file_names

ARCHITECTURE = re.compile(r"(?:Llava)?(\w+?)ForCausalLM")
BACKBONES = {
    "gemma": "gemma",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen": "qwen2",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""By the name in the architecture, in lower case: model types of transformers."""

Kind = Literal["original", "original-lora", "original-projector"]


def kind_of(source: Source) -> Kind:
    """Tell whole models, updates of a model by PEFT, and projectors apart."""
    if (source.folder / ADAPTER).is_file():
        return "original-lora"
    names = file_names(source)
    promised = files.wanted(source.folder) or [BASE_WEIGHTS, files.BIN_WEIGHTS]
    whole = names & {BASE_INDEX, BIN_INDEX, *promised}
    return "original-projector" if files.PROJECTOR in names and not whole else "original"


def text_type(config: Mapping[str, Any], place: str) -> str:
    """Find what transformers calls the language model.

    Raises:
        VictorError: If it is none that LLaVA was built on, or MPT.
    """
    match = ARCHITECTURE.fullmatch((architectures(config) or [""])[0])
    word = match[1] if match else str(config.get("model_type")).removeprefix("llava_")
    word = "llama" if word.lower() == "llava" else word
    if found := BACKBONES.get(word.lower()):
        return found
    raise VictorError(
        f"{place}: its language model, {word}, is none that is translated "
        f"({', '.join(sorted(set(BACKBONES.values())))})",
        fix="use a model from huggingface.co/llava-hf",
    )


def check_supported(config: Mapping[str, Any], place: str) -> None:
    """Refuse, by the name of what is in the way, what transformers has no class for.

    Raises:
        VictorError: With the first reason that holds.
    """
    for holds, problem, fix in REFUSALS:
        if holds(config, place):
            raise VictorError(f"{place}: {problem.format_map(_Shown(config))}", fix=fix)


class _Shown(dict[str, Any]):
    """Spells a configuration's values for a sentence."""

    def __getitem__(self, key: str) -> str:
        return repr(self.get(key))


def _is_delta(_config: Mapping[str, Any], place: str) -> bool:
    return "delta" in re.split(r"[-_.]", place.rpartition("/")[2].lower())


def _is(key: str, *allowed: Any) -> Callable[[Mapping[str, Any], str], bool]:
    return lambda config, _place: config.get(key) not in allowed


VIDEO = "use a model with {}, such as lmms-lab/llava-onevision-qwen2-7b-ov"
OTHER = "use a model with mm_projector_type mlp2x_gelu, such as liuhaotian/llava-v1.5-7b"
REFUSALS: tuple[tuple[Callable[[Mapping[str, Any], str], bool], str, str], ...] = (
    (
        _is_delta,
        "a delta, the difference to LLaMA's weights, not a model",
        "use a model that is whole, such as liuhaotian/llava-v1.5-7b",
    ),
    (
        lambda config, _place: architectures(config) is None,
        "config.json: architectures {architectures} is no list of names",
        "use another copy of the model",
    ),
    (
        lambda config, _place: (
            "mpt" in str(config.get("architectures", "")).lower()
            or "mpt" in str(config.get("model_type", "")).lower()
        ),
        "its language model is MPT, which no LLaVA of transformers can have",
        "use a model on Llama, Mistral or Qwen; see victorctl families",
    ),
    (
        lambda config, _place: "quantization_config" in config,
        "its weights are quantised, which Victor models cannot be yet",
        "convert the model that it was quantised from",
    ),
    (
        _is("mm_projector_type", "mlp2x_gelu"),
        "mm_projector_type {mm_projector_type}, and transformers has only mlp2x_gelu "
        "(None means linear, as in LLaVA before 1.5)",
        OTHER,
    ),
    (
        _is("mm_use_im_start_end", None, False),
        "mm_use_im_start_end {mm_use_im_start_end}: a picture stands between two tokens of its "
        "own, which transformers' processor does not write",
        "use a model without them, such as liuhaotian/llava-v1.5-7b",
    ),
    (
        _is("mm_resampler_type", None, "identity"),
        "mm_resampler_type {mm_resampler_type}: transformers has no resampler there",
        "use a model without one, such as liuhaotian/llava-v1.5-7b",
    ),
    (
        _is("mm_newline_position", None, "one_token"),
        "mm_newline_position {mm_newline_position}: lines of a video end as in LLaVA-Video, which "
        "transformers has no class for",
        VIDEO.format("mm_newline_position one_token"),
    ),
    (
        _is("mm_spatial_pool_mode", None, "bilinear"),
        "mm_spatial_pool_mode {mm_spatial_pool_mode}, and transformers shrinks the pictures of a "
        "video by bilinear means alone",
        VIDEO.format("mm_spatial_pool_mode bilinear"),
    ),
    (
        _is("mm_spatial_pool_stride", None, 2),
        "mm_spatial_pool_stride {mm_spatial_pool_stride}, and transformers shrinks the pictures of "
        "a video by 2 alone",
        VIDEO.format("mm_spatial_pool_stride 2"),
    ),
    (
        _is("mm_vision_select_feature", None, "patch", "cls_patch"),
        "mm_vision_select_feature {mm_vision_select_feature} is neither 'patch' nor 'cls_patch'",
        "correct config.json, or use another copy of the model",
    ),
    (
        lambda config, _place: not isinstance(config.get("mm_vision_select_layer", -2), int),
        "mm_vision_select_layer {mm_vision_select_layer} is not one layer",
        "write it as a whole number, such as -2, or use another copy of the model",
    ),
)
"""What is in the way, as a sentence and a way out; values of the configuration are filled in."""
