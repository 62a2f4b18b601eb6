"""Tiny LLaVAs in the layouts that their authors publish: the inverse of what convert does.

Nothing here is read by the package: names and keys are written down again, from the other side.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny import WORDS, spread_weights
from victorctl.layouts.towers import CLIP_COLOURS, SIGLIP_COLOURS, TOWERS, Tower

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TAUGHT = (*SPECIAL, *WORDS)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CLIP = {"model_type": "clip_vision_model", **SIZES, "num_hidden_layers": 3, "projection_dim": 32}
SIGLIP = {
    "model_type": "siglip_vision_model", **SIZES, "num_hidden_layers": 2, "vision_use_head": False,
}  # fmt: skip
GRID = [[32, 64], [64, 32], [64, 64]]
KINDS = {  # target: classes, tower, `image_aspect_ratio`, `mm_patch_merge_type`
    "llava": (LlavaConfig, LlavaForConditionalGeneration, "clip", "pad", "flat"),
    "interleave": (LlavaConfig, LlavaForConditionalGeneration, "siglip", "anyres", "flat"),
    "next": (LlavaNextConfig, LlavaNextForConditionalGeneration, "clip", "anyres", "spatial_unpad"),
    "next on siglip": (
        LlavaNextConfig, LlavaNextForConditionalGeneration, "siglip", "anyres", "spatial_unpad",
    ),
    "onevision": (
        LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, "siglip", "anyres_max_9",
        "spatial_unpad",
    ),
}  # fmt: skip
ARCHITECTURES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen"}


def know_tiny_towers(patch: Any) -> None:
    """Let the names of the tiny towers stand for them, as openai/... does for the real one."""
    patch.setitem(TOWERS, "tiny-clip", Tower(CLIP, CLIP_COLOURS))
    patch.setitem(TOWERS, "tiny-siglip", Tower(SIGLIP, SIGLIP_COLOURS))


def native(kind: str = "llava", *, text: str = "llama", tied: bool = False) -> PreTrainedModel:
    """Build the model that an original holds, with the vocabulary as it was taught."""
    config_class, model_class, tower, _, merge = KINDS[kind]
    vocab = len(TAUGHT) + (60 if text == "qwen2" else 0)  # Qwen's has rows to spare
    words = CONFIG_MAPPING[text](
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied,
    )  # fmt: skip
    clip = tower == "clip"
    more = {"image_grid_pinpoints": GRID} if merge == "spatial_unpad" else {}
    config = config_class(
        text_config=words,
        vision_config=(CLIPVisionConfig if clip else SiglipVisionConfig)(
            **{
                key: value
                for key, value in (CLIP if clip else SIGLIP).items()
                if key != "model_type"
            }
        ),
        image_token_index=len(TAUGHT),
        vision_feature_select_strategy="default" if clip else "full",
        vision_feature_layer=-2 if clip else -1,
        tie_word_embeddings=tied,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = model_class(config).eval()
        spread_weights(model)
        if tied:
            model.tie_weights()
    return model


@torch.no_grad()
def grown(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Give a model's vocabulary more rows, each the mean of those that there are."""
    old = model.config.text_config.vocab_size
    model.resize_token_embeddings(rows, mean_resizing=False)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight[old:] = embeddings.weight[:old].double().mean(0).to(model.dtype)
    return model


def original_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Name a model's tensors as LLaVA's own code does."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ("model.language_model.", "model."),
            ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ):
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        renamed[name] = tensor.clone()
    if model.config.tie_word_embeddings:
        del renamed["lm_head.weight"]
    renamed["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # of old versions
    if model.config.vision_config.model_type == SIGLIP["model_type"]:
        renamed["model.vision_tower.vision_tower.vision_model.head.probe"] = torch.ones(1, 1, 32)
    return renamed


def original_config(model: PreTrainedModel, kind: str, **more: Any) -> dict[str, Any]:
    """Write the `config.json` of an original, in which the language model's keys stand on top."""
    text = model.config.text_config.to_dict()
    _, _, tower, aspect, merge = KINDS[kind]
    name = ARCHITECTURES[text["model_type"]]
    rope = text.pop("rope_parameters")
    config = text | {
        "_name_or_path": "./checkpoints/somewhere",
        "architectures": [f"Llava{name}ForCausalLM"],
        "model_type": "llava" if name == "Llama" else f"llava_{name.lower()}",
        "rope_theta": rope["rope_theta"],
        "torch_dtype": "float32",
        "use_cache": False,
        "mm_vision_tower": f"openai/tiny-{tower}",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": merge,
        "image_aspect_ratio": aspect,
        "image_grid_pinpoints": GRID,
        "tokenizer_model_max_length": 300,
    }
    return config | more


def tokenizer(pad: str | None = None) -> PreTrainedTokenizerFast:
    """Build the tokenizer of an original: it knows no pictures."""
    words = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(TAUGHT)}, unk_token="<unk>")
    )
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad,
        padding_side="right",
    )  # fmt: skip


def write_weights(
    folder: Path, state: Mapping[str, Tensor], *, shards: int = 1, pickled: bool = False
) -> None:
    """Write tensors to files of either kind, with an index where there are several."""
    names = list(state)
    stem, end = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    whole: dict[str, str] = {}
    for place in range(shards):
        part = {name: state[name].contiguous() for name in names[place::shards]}
        number = f"-{place + 1:05d}-of-{shards:05d}" if shards > 1 else ""
        file = f"{stem}{number}.{end}"
        if pickled:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
        whole |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": whole}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


def write_original(  # noqa: PLR0913
    folder: Path,
    model: PreTrainedModel,
    kind: str = "llava",
    *,
    shards: int = 1,
    pickled: bool = False,
    tower: bool = True,
    **more: Any,
) -> Path:
    """Write a model as its authors do; `more` changes `config.json`."""
    folder.mkdir(parents=True)
    state = original_state(model)
    if not tower:
        state = {name: one for name, one in state.items() if "vision_tower" not in name}
    write_weights(folder, state, shards=shards, pickled=pickled)
    write_small(folder, original_config(model, kind, **more))
    return folder


def write_small(folder: Path, config: Mapping[str, Any]) -> None:
    """Write what stands beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "LICENSE").write_text("terms")
    tokenizer().save_pretrained(folder)


def write_tower(folder: Path, model: PreTrainedModel) -> Path:
    """Write a model's vision tower as the folder of its own that it once was."""
    config = model.config.vision_config
    clip = config.model_type == "clip_vision_model"
    tower = (CLIPVisionModel if clip else SiglipVisionModel)(config).to(model.dtype)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    folder.mkdir(parents=True)
    state = {f"vision_model.{name}": one for name, one in tower.state_dict().items()}
    own = config.to_dict()
    if not clip:  # as published: with a last layer that LLaVA never runs, and a head
        last = {name: one for name, one in state.items() if ".layers.1." in name}
        state |= {name.replace(".layers.1.", ".layers.2."): one * 2 for name, one in last.items()}
        state["vision_model.head.probe"] = torch.ones(1, 1, 32)
        own["num_hidden_layers"] += 1
        own.pop("vision_use_head")
    state["text_model.embeddings.token_embedding.weight"] = torch.ones(2, 2)
    state["logit_scale"] = torch.ones(())
    outer = {"model_type": "clip" if clip else "siglip", "vision_config": own, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    save_file({name: one.contiguous() for name, one in state.items()}, folder / "model.safetensors")
    return folder
