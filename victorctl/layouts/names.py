"""What tensors of an original layout are called in transformers, and which must be there.

Source: transformers 4.46, models/llava*/convert_llava*_weights_to_hf.py, KEYS_TO_MODIFY_MAPPING.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from victorctl.errors import VictorError
from victorctl.layouts.towers import SIGLIP

EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
NEWLINE = "image_newline"
TOWER = "vision_tower.vision_model."
PROJECTOR = "multi_modal_projector."
RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)", rf"{TOWER}\1"),
        (r"model\.mm_projector\.0\.(weight|bias)", rf"{PROJECTOR}linear_1.\1"),
        (r"model\.mm_projector\.2\.(weight|bias)", rf"{PROJECTOR}linear_2.\1"),
        (r"model\.(image_newline)", r"\1"),
        (
            r"model\.((?:embed_tokens|norm)\.weight|layers\.\d+\..+)",
            r"language_model.model.\1",
        ),
        (r"(lm_head\.weight)", r"language_model.\1"),
    )
)
IN_TOWER = re.compile(
    r"(?:vision_tower\.)?(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)"
)
BUFFERS = re.compile(r".*(?:\.inv_freq|position_ids)")
VISION_LAYER = re.compile(rf"{re.escape(TOWER)}encoder\.layers\.(\d+)\.")
LAYER = re.compile(r"(.+\.layers\.)(\d+)\.(.+)")

Rename = Callable[[str], str | None]
"""New name of a tensor; None where it is left out."""


def of_model(config: Mapping[str, Any]) -> Rename:
    """Make the rule for a model's own tensors.

    Args:
        config: `config.json` in transformers' layout.
    """

    def rename(name: str) -> str | None:
        if BUFFERS.fullmatch(name):
            return None
        for pattern, new in RULES:
            if match := pattern.fullmatch(name):
                return _used(match.expand(new), config)
        raise VictorError(
            f"tensor {name} has no place in {config['architectures'][0]}",
            fix="use a model that LLaVA's own code wrote; see victorctl families",
        )

    return rename


def of_tower(config: Mapping[str, Any]) -> Rename:
    """Make the rule for the tensors of a vision tower that comes by itself.

    Args:
        config: `config.json` in transformers' layout.
    """

    def rename(name: str) -> str | None:
        match = IN_TOWER.fullmatch(name)
        if not match or BUFFERS.fullmatch(name):  # a text tower, say
            return None
        return _used(TOWER + match[1], config)

    return rename


def _used(name: str, config: Mapping[str, Any]) -> str | None:
    """Leave out what the model has no use for."""
    layer, vision = VISION_LAYER.match(name), config["vision_config"]
    never_run = vision["num_hidden_layers"] if vision.get("model_type") == SIGLIP else None
    unused = (
        (layer and int(layer[1]) == never_run)  # SigLIP's last
        or name.startswith(f"{TOWER}head.")
        or (name == NEWLINE and config["model_type"] == "llava")
        or (name == HEAD and config["tie_word_embeddings"])
    )
    return None if unused else name


def without_wrapper(names: Collection[str]) -> dict[str, str]:
    """Map what PEFT called the trained tensors beside an adapter to the model's own names.

    Source: haotian-liu/LLaVA, llava/model/builder.py, where non_lora_trainables.bin is read.
    """
    short = {name: name.removeprefix("base_model.") for name in names}
    doubled = any(name.startswith("model.model.") for name in short.values())
    return {name: new.removeprefix("model.") if doubled else new for name, new in short.items()}


def check_complete(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> None:
    """Refuse a model that lacks a tensor, or whose sizes are not those of its configuration.

    Args:
        shapes: New names.
        config: `config.json` in transformers' layout, but with the old vocabulary.

    Raises:
        VictorError: With the first that is found.
    """
    for name, shape in _expected(config).items():
        if name not in shapes:
            problem = f"no tensor {name} among the weights"
            raise VictorError(problem, fix="use a whole copy of the model")
        if shapes[name] != shape:
            found, meant = ("x".join(map(str, each)) for each in (shapes[name], shape))
            raise VictorError(
                f"tensor {name} is {found}, and config.json says {meant}",
                fix="use a copy whose weights and config.json belong together",
            )
    _check_layers(shapes, "language_model.model.layers.", config["text_config"])
    _check_layers(shapes, f"{TOWER}encoder.layers.", config["vision_config"])


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    text, vision = config["text_config"], config["vision_config"]
    width, seen, patch = text["hidden_size"], vision["hidden_size"], vision["patch_size"]
    places = (vision["image_size"] // patch) ** 2 + (vision["model_type"] == "clip_vision_model")
    expected = {
        EMBEDDINGS: (text["vocab_size"], width),
        "language_model.model.norm.weight": (width,),
        f"{PROJECTOR}linear_1.weight": (width, seen),
        f"{PROJECTOR}linear_1.bias": (width,),
        f"{PROJECTOR}linear_2.weight": (width, width),
        f"{PROJECTOR}linear_2.bias": (width,),
        f"{TOWER}embeddings.patch_embedding.weight": (seen, 3, patch, patch),
        f"{TOWER}embeddings.position_embedding.weight": (places, seen),
        f"{TOWER}post_layernorm.weight": (seen,),
    }
    if not config["tie_word_embeddings"]:
        expected[HEAD] = (text["vocab_size"], width)
    if config["model_type"] != "llava":
        expected[NEWLINE] = (width,)
    return expected


def _check_layers(shapes: Mapping[str, Any], prefix: str, config: Mapping[str, Any]) -> None:
    """Hold every layer to what the layers have together."""
    count = config["num_hidden_layers"]
    found: dict[int, set[str]] = {number: set() for number in range(count)}
    for name in shapes:
        match = LAYER.fullmatch(name)
        if match and match[1] == prefix:
            found.setdefault(int(match[2]), set()).add(match[3])
    whole = set().union(*found.values())
    for number, parts in found.items():
        if number >= count or parts != whole or not whole:
            part = min(whole - parts, default="") if number < count else min(parts)
            word = "too many" if number >= count else "missing"
            raise VictorError(
                f"tensor {prefix}{number}.{part} is {word}: config.json says {count} layers",
                fix="use a copy whose weights and config.json belong together",
            )
