"""Vision towers of original layouts: those that their names stand for, and any that is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from victorctl.checkpoint import read_config
from victorctl.errors import VictorError
from victorctl.sources import Source, read_json

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
CLIP_COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP_COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Tower:
    """What a vision tower is like."""

    config: Mapping[str, Any]
    """`vision_config` in `config.json`."""
    colours: Mapping[str, Any]
    """Mean and deviation that pictures are normalised with."""

    @property
    def is_clip(self) -> bool:
        """Whether it has a class token, and one layer of two from the end is read."""
        return self.config["model_type"] == CLIP

    @property
    def visual_tokens(self) -> int:
        """Of one picture, without a class token."""
        return (self.config["image_size"] // self.config["patch_size"]) ** 2


def _large_clip(image_size: int) -> Tower:
    config = {
        "model_type": CLIP,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": image_size,
        "patch_size": 14,
        "projection_dim": 768,
    }
    return Tower(config, CLIP_COLOURS)


TOWERS = {
    "clip-vit-large-patch14": _large_clip(224),
    "clip-vit-large-patch14-336": _large_clip(336),
    "siglip-so400m-patch14-384": Tower(
        {
            "model_type": SIGLIP,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,  # of 27: the last is never run
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        SIGLIP_COLOURS,
    ),
}
"""By the last part of `mm_vision_tower`.

Source: transformers 4.46, models/llava*/convert_llava*_weights_to_hf.py.
"""


def named_tower(name: str, place: str) -> Tower:
    """Find the tower that a configuration names.

    Raises:
        VictorError: If it is none of those that are known.
    """
    if tower := TOWERS.get(PurePosixPath(name).name):
        return tower
    raise VictorError(
        f"{place}: mm_vision_tower {name!r} is none of {', '.join(TOWERS)}",
        fix="add --vision-tower SOURCE with that vision tower, CLIP or SigLIP",
    )


def given_tower(source: Source) -> Tower:
    """Read what a tower is like from its own folder.

    Raises:
        VictorError: If it is neither CLIP nor SigLIP.
    """
    raw = read_config(source.folder)
    kind = str(raw.get("model_type"))
    own = raw.get("vision_config", raw) if kind in ("clip", "siglip") else raw
    kind = f"{kind.removesuffix('_vision_model')}_vision_model"
    if kind not in (CLIP, SIGLIP) or not isinstance(own, dict):
        raise VictorError(
            f"--vision-tower {source.name}: a model of type {raw.get('model_type')}",
            fix="give the CLIP or SigLIP that mm_vision_tower in config.json names",
        )
    return Tower(_completed(own, kind, source.name), _colours(source, kind))


ALIKE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "image_size", "patch_size"),
)


def check_is_named(tower: Tower, name: str, source: Source) -> None:
    """Refuse a given tower that is not like the one that a model was trained with.

    Args:
        tower: That is given.
        name: `mm_vision_tower` of the model; of a name that is not known, nothing is asked.
        source: Of the tower.

    Raises:
        VictorError: With the first difference.
    """
    meant = TOWERS.get(PurePosixPath(name).name)
    for key in ALIKE if meant else ():
        wanted, found = meant.config[key], tower.config.get(key)
        if found is not None and found != wanted:
            raise VictorError(
                f"--vision-tower {source.name}: {key} {found}, and {name}, with which the model "
                f"was trained, has {wanted}",
                fix=f"give {name}, or a copy of it",
            )


def is_count(value: Any) -> bool:
    """Say whether a value is a whole number of at least one."""
    return type(value) is int and value > 0


def check_count(config: Mapping[str, Any], key: str, place: str) -> None:
    """Refuse what is no whole number of at least one.

    Raises:
        VictorError: If it is none.
    """
    if not is_count(config[key]):
        raise VictorError(
            f"{place}: config.json: {key} {config[key]!r} is no count",
            fix="use another copy of the model",
        )


def own_fields(known: type) -> set[str]:
    """Name what a configuration has beside what all of them have."""
    from transformers import PreTrainedConfig

    return set(known.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)


def _completed(own: Mapping[str, Any], kind: str, place: str) -> dict[str, Any]:
    """Keep what describes the tower, with transformers' defaults for what is not said."""
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[kind]
    config = {key: own[key] for key in own_fields(known) if key in own}
    defaults = known().to_dict()
    for key in ("hidden_size", "num_hidden_layers", "image_size", "patch_size"):
        config.setdefault(key, defaults[key])
        check_count(config, key, f"--vision-tower {place}")
    if kind == SIGLIP:  # LLaVA never runs its last layer, nor its head
        config["num_hidden_layers"] -= 1
        config["vision_use_head"] = False
    return config | {"model_type": kind}


def _colours(source: Source, kind: str) -> Mapping[str, Any]:
    found = read_json(source.folder / "preprocessor_config.json") or {}
    if kind == CLIP and {"image_mean", "image_std"} <= set(found):
        return {key: found[key] for key in ("image_mean", "image_std")}
    return CLIP_COLOURS if kind == CLIP else SIGLIP_COLOURS
