"""An original layout by another way: transformers reads, renames and resizes, PEFT merges."""

import gc
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from victorctl.checkpoint import quiet_loading
from victorctl.families import Family
from victorctl.layouts import files
from victorctl.layouts.towers import CLIP
from victorctl.layouts.translation import Translation

KEYS = {  # in this order
    r"^model\.vision_tower\.vision_tower\.": "vision_tower.",
    r"^model\.mm_projector\.0\.": "multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "multi_modal_projector.linear_2.",
    r"^model\.image_newline": "image_newline",
    r"^model\.(embed_tokens|layers|norm)\.": r"language_model.model.\1.",
    r"^lm_head\.": "language_model.lm_head.",
}
"""For transformers' own renaming of what it loads, which goes on from here."""
IN_MEMORY = {  # in this order
    r"^(?:base_model\.)?(?:model\.)?(?=model\.|lm_head\.)": "",
    r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
"""For what was trained beside a LoRA, or alone, and is put into the native class by itself."""
MERGED = 2**-5  # share of the largest logit that rounding a merged weight once or twice may cost


@contextmanager
def original_model(
    translation: Translation,
    family: Family,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn: str | None,
) -> Iterator[nn.Module]:
    """Load an original as the native class, without anything that translating it wrote.

    Args:
        translation: Of the original.
        family: Whose native class it becomes.
        dtype: Number format to load in.
        device: Where to.
        attn: Attention.
    """
    with quiet_loading():
        model = _load(translation, getattr(transformers, family.native), dtype, attn)
        if translation.kind != "original":
            _add_own(model, translation)
        if translation.tower is not None and not translation.has_tower:
            _add_tower(model, translation)
        if translation.kind == "original-lora":
            _merge(model, translation.original.folder)
        _resize(model, translation)
    try:
        with torch.inference_mode():
            yield model.to(device).eval()
    finally:
        del model
        gc.collect()


def _load(
    translation: Translation, native: type[PreTrainedModel], dtype: torch.dtype, attn: str | None
) -> PreTrainedModel:
    config = AutoConfig.for_model(**translation.config)
    config.text_config.vocab_size = translation.vocab
    config.text_config.pad_token_id = None  # may be one of the new tokens
    return native.from_pretrained(
        (translation.base or translation.original).folder,
        config=config,
        key_mapping=KEYS,
        dtype=dtype,
        attn_implementation=attn,
    )


def _add_own(model: PreTrainedModel, translation: Translation) -> None:
    """Put in what a LoRA or projector repository holds whole."""
    name = files.TRAINABLES if translation.kind == "original-lora" else files.PROJECTOR
    state = torch.load(translation.original.folder / name, weights_only=True)
    model.load_state_dict({_native(key): one for key, one in state.items()}, strict=False)


def _native(key: str) -> str:
    """Say what a model in memory calls a tensor that was trained beside a LoRA, or a projector."""
    for pattern, new in IN_MEMORY.items():
        key = re.sub(pattern, new, key)
    return key


def _add_tower(model: PreTrainedModel, translation: Translation) -> None:
    """Load the vision tower as a model of its own."""
    config = model.config.vision_config
    native = "CLIPVisionModel" if config.model_type == CLIP else "SiglipVisionModel"
    tower = getattr(transformers, native).from_pretrained(
        translation.tower.folder, config=config, dtype=model.dtype
    )
    model.model.vision_tower.load_state_dict(tower.state_dict())


def _merge(model: PreTrainedModel, folder: Path) -> None:
    """Let PEFT merge its adapter into the text model."""
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    config = LoraConfig.from_pretrained(folder)
    config.inference_mode, config.task_type, config.base_model_name_or_path = True, None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what PEFT still asks a model
        wrapped = get_peft_model(model.model.language_model, config)
    state = {
        key.replace("base_model.model.model.", "base_model.model.", 1): tensor
        for key, tensor in load_peft_weights(str(folder), device="cpu").items()
    }
    set_peft_model_state_dict(wrapped, state)
    model.model.language_model = wrapped.merge_and_unload()


def _resize(model: PreTrainedModel, translation: Translation) -> None:
    """Make room for the new tokens; what stands there is not compared."""
    rows = translation.config["text_config"]["vocab_size"]
    model.resize_token_embeddings(rows, mean_resizing=False)


def known_words(ids: Tensor, vocab: int, image: int) -> Tensor:
    """Replace words beyond the original's vocabulary by others within."""
    return torch.where((ids < vocab) | (ids == image), ids, ids % vocab)
