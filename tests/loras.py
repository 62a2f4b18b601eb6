"""LoRA repositories as LLaVA's training saves them, and the language models under them."""

import json
import re

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests import originals

STAYS_OUT = re.compile("vision|mm_|image_newline")  # of a language model


def write_base(folder, model, **how):
    """Write a language model by itself, as Vicuna is."""
    folder.mkdir()
    state = originals.original_state(model)
    words = {name: one for name, one in state.items() if not STAYS_OUT.search(name)}
    originals.write_weights(folder, words, **how)
    config = model.config.text_config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    originals.tokenizer().save_pretrained(folder)
    return folder


def trained(model, **settings):
    """Put a LoRA that is not zero on every projection of a language model."""
    text = LlamaForCausalLM(model.config.text_config)
    text.load_state_dict(
        {
            name: one
            for name, one in originals.original_state(model).items()
            if name in text.state_dict()
        }
    )
    config = LoraConfig(r=4, lora_alpha=12, target_modules=r".*layers.*_proj", **settings)
    wrapped = get_peft_model(text, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
                )
    return wrapped


def write_lora(  # noqa: PLR0913
    folder, model, base, *, kind="llava", besides=("mm_",), pickled=False, **settings
):
    """Write what LLaVA's LoRA training saves, and return the merged language model."""
    wrapped = trained(model, **settings)
    wrapped.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    if pickled:  # as versions of peft before 0.7 did
        torch.save(load_file(file), folder / "adapter_model.bin")
        file.unlink()
    adapter = json.loads((folder / "adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    state = originals.original_state(model)
    whole = {name: one for name, one in state.items() if any(word in name for word in besides)}
    torch.save(
        {f"base_model.model.{name}": one for name, one in whole.items()},
        folder / "non_lora_trainables.bin",
    )
    config = originals.original_config(model, kind)
    (folder / "config.json").write_text(json.dumps(config))
    return wrapped.merge_and_unload()
