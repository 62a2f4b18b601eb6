"""A tiny Victor model of every family that is said to be tested, made as a user makes it.

    python -m tests.families FOLDER

writes them all, a folder each, for `tests/modeling/laws.py`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.utils import is_timm_available

from tests.converting import run
from tests.modeling.laws import ONE_SAMPLE
from tests.tiny import TEXT, TOWER, spread_weights
from tests.victor_models import ADAPTER
from victorctl import modeling_victor
from victorctl.modeling_victor import MODALITIES

IMAGE, VIDEO, BREAK = 4, 3, 30  # token ids: placeholders, and what stands between an image's rows
COUNT = {"image": 8, "video": 4}
SIGLIP = {key: value for key, value in TOWER.items() if key != "projection_dim"}
SIGLIP |= {"model_type": "siglip_vision_model"}
GRID = [[32, 64], [64, 32], [64, 64]]
SIZES = [(32, 32), (30, 60), (64, 40), (50, 50)]  # height and width of pictures, in turn
FRAMES = 2

Draw = Callable[[int], dict[str, Tensor]]


def noise(seed: int, *sizes: int) -> Tensor:
    """Draw pixels."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(1 + seed))


def square(number: int) -> dict[str, Tensor]:
    """Draw a picture of one size."""
    return {"pixel_values": noise(number, 1, 3, 32, 32)}


def large(number: int) -> dict[str, Tensor]:
    """Draw a picture of one or two tiles, for towers that shrink them much."""
    return {"pixel_values": noise(number, 1 + number % 2, 3, 64, 64)}


def tiles(number: int) -> dict[str, Tensor]:
    """Draw a picture of one or two tiles."""
    return {"pixel_values": noise(number, 1 + number % 2, 3, 32, 32)}


def stacked(number: int) -> dict[str, Tensor]:
    """Draw a picture of two tiles, in a dimension of their own."""
    return {"pixel_values": noise(number, 1, 2, 3, 32, 32)}


def any_size(number: int) -> dict[str, Tensor]:
    """Draw a picture of its own size, in as many tiles as it needs, filled up to the most."""
    size = SIZES[number % len(SIZES)]
    count = image_size_to_num_patches(list(size), GRID, TOWER["image_size"])
    pixels = torch.zeros(1, 5, 3, 32, 32)
    pixels[0, :count] = noise(number, count, 3, 32, 32)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


def sized(number: int) -> dict[str, Tensor]:
    """Draw a picture for a tower that is told its size."""
    return square(number) | {"image_sizes": torch.tensor([[32, 32]])}


def video(number: int) -> dict[str, Tensor]:
    """Draw a video."""
    return {"pixel_values_videos": noise(100 + number, 1, FRAMES, 3, 32, 32)}


class Tiny(NamedTuple):
    """A family's configuration, beside the text model's, and how its pictures are drawn."""

    text: str
    config: dict[str, Any]
    image: Draw = square
    video: Draw | None = None
    rows: int = 1
    """Pieces that an image's placeholders come in, with text between them."""
    apart: bool = False
    """Its tiles have text between them."""


SHOWN = {"image_token_index": IMAGE, "vision_config": TOWER}
MOVING = {"video_token_index": VIDEO}
FAMILIES = {
    "llava": Tiny("llama", SHOWN),
    "vipllava": Tiny("llama", {**SHOWN, "vision_feature_layer": [-2, -1, 1]}),
    "llava_next": Tiny("mistral", {**SHOWN, "image_grid_pinpoints": GRID}, any_size),
    "llava_next_video": Tiny(
        "llama", {**SHOWN, **MOVING, "image_grid_pinpoints": GRID}, any_size, video
    ),
    "llava_onevision": Tiny(
        "qwen2",
        {**SHOWN, **MOVING, "vision_config": SIGLIP, "image_grid_pinpoints": GRID},
        any_size,
        video,
    ),
    "video_llava": Tiny("llama", {**SHOWN, **MOVING}, square, video),
    "aya_vision": Tiny("cohere2", {**SHOWN, "vision_config": SIGLIP}, tiles, apart=True),
    "cohere2_vision": Tiny(
        "cohere2",
        {"image_token_id": IMAGE, "vision_config": SIGLIP, "alignment_intermediate_size": 64},
        tiles,
        apart=True,
    ),
    "fast_vlm": Tiny(
        "qwen2",
        {
            "image_token_index": IMAGE,
            "vision_config": {
                **{"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": 64},
                "model_args": {
                    **{"layers": [1, 1], "embed_dims": [8, 32], "mlp_ratios": [2, 2]},
                    **{"se_downsamples": [False, False], "downsamples": [False, True]},
                    **{"token_mixers": ["repmixer", "attention"], "pos_embs": [None, None]},
                    "inference_mode": True,
                },
            },
        },
    ),
    "got_ocr2": Tiny(
        "qwen2",
        {
            "image_token_index": IMAGE,
            "vision_config": {
                **{"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2},
                **{"num_attention_heads": 4, "image_size": 64, "patch_size": 8, "mlp_dim": 64},
                **{"window_size": 4, "global_attn_indexes": [1]},
            },
        },
        large,
    ),
    "idefics3": Tiny(
        "llama",
        {
            "image_token_id": IMAGE,
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision"},
        },
        tiles,
        apart=True,
    ),
    "internvl": Tiny(
        "qwen2",
        {
            "image_token_id": IMAGE,
            "vision_config": {
                **SIGLIP,
                **{"model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [8, 8]},
            },
        },
        tiles,
    ),
    "mistral3": Tiny(
        "mistral",
        {
            "image_token_index": IMAGE,
            "vision_config": {**SIGLIP, "model_type": "pixtral", "head_dim": 8},
        },
        sized,
        rows=2,
    ),
    "perception_lm": Tiny(
        "llama",
        {
            **{"image_token_id": IMAGE, "video_token_id": VIDEO, "projector_pooling_ratio": 2},
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "model_args": {
                    **{"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": [32, 32]},
                    **{"patch_size": 8, "global_pool": "", "use_post_transformer_norm": False},
                    **{"init_values": 0.1, "ref_feat_shape": [4, 4]},
                },
            },
        },
        stacked,
        video,
    ),
    "smolvlm": Tiny(
        "llama",
        {
            "image_token_id": IMAGE,
            "vision_config": {**SIGLIP, "model_type": "smolvlm_vision"},
        },
        tiles,
        apart=True,
    ),
}
"""By model type; what a family's own defaults make too large is small."""
TIMM = [
    name
    for name, tiny in FAMILIES.items()
    if tiny.config["vision_config"].get("model_type") == "timm_wrapper"
]
"""Families whose towers need timm."""


def tiny_family(name: str, **vision: Any) -> PreTrainedModel:
    """Build a family's native class, tiny, with weights that all matter; `vision` goes to it."""
    tiny = FAMILIES[name]
    text = CONFIG_MAPPING[tiny.text](**{**TEXT, "vocab_size": 160})  # room for words of processors
    seeing = {"vision_config": {**tiny.config["vision_config"], **vision}}
    config = CONFIG_MAPPING[name](text_config=text, **{**tiny.config, **seeing})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
        spread_weights(model)
    return model


@torch.no_grad()
def drawn(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """Draw pictures and videos, and spell each with as many placeholders as it has features."""
    tiny, made = FAMILIES[name], {}
    for modality, draw in (("image", tiny.image), ("video", tiny.video)):
        token = getattr(model.config, MODALITIES[modality].token, None)
        for number in range(COUNT[modality] if draw else 0):
            pixels = draw(number)
            seen = (
                {key: value[None] for key, value in pixels.items()}
                if name in ONE_SAMPLE
                else pixels
            )
            encode = getattr(model.model, f"get_{modality}_features", None)
            if encode is None:
                encode = model.model.get_image_features
                seen = {"pixel_values": seen["pixel_values_videos"]}
            features = encode(**seen, return_dict=True)
            count = sum(feature[..., 0].numel() for feature in features.pooler_output)
            pieces = len(pixels["pixel_values"]) if tiny.apart else tiny.rows
            rows = [[token] * (count // pieces)] * pieces
            spelled = [id for row in rows for id in (BREAK, *row)][1:]
            made |= {f"{modality}.{number}.{key}": value for key, value in pixels.items()}
            made[f"{modality}.{number}.spelled"] = torch.tensor(spelled)
    return made


def convert(place: Path, model: PreTrainedModel, name: str) -> Path:
    """Write `source`, `victor`, it converted and as if trained, and their pictures."""
    if not (place / "source").exists():
        model.save_pretrained(place / "source")
    save_file(drawn(model, name), place / "pictures.safetensors")
    run(place / "source", place / "converted", flags={"victor.registers": 3})
    adapt(place / "converted").save_pretrained(place / "victor")
    return place


def adapt(folder: Path) -> modeling_victor.VictorMixin:
    """Load a converted model and give it adapters and offsets that are not zero."""
    remote = json.loads((folder / "config.json").read_text())["auto_map"]
    ours = remote["AutoModelForImageTextToText"].rpartition(".")[2]
    model = getattr(modeling_victor, ours).from_pretrained(folder)
    layers = model.get_decoder().layers
    model.victor.deepen(layers)
    model.victor.adapt(layers, ADAPTER)
    model.config.victor = {**model.config.victor, "adapter": ADAPTER, "deep": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for part in (model.victor.offsets, model.victor.adapters):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.2)
    return model


def make(place: Path, name: str) -> Path:
    """Write a family's case."""
    return convert(place, tiny_family(name), name)


if __name__ == "__main__":
    for each in FAMILIES.keys() - (set() if is_timm_available() else set(TIMM)):
        make(Path(sys.argv[1]) / each, each)
