"""A tiny Victor model on every backbone that is said to be tested, made as a user makes it.

    python -m tests.backbones FOLDER

writes them all, a folder each, for `tests/modeling/laws.py`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.converting import run
from tests.tiny import tiny_model, tiny_processor
from tests.victor_models import ADAPTER
from victorctl.modeling_victor import VictorLlava

WINDOW = {"sliding_window": 7}  # smaller than an image and than what is generated

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def kinds(signs: str) -> dict[str, Any]:
    """Spell the layers' kinds: `f` sees everything, `s` through a window."""
    names = {"f": "full_attention", "s": "sliding_attention"}
    return {**WINDOW, "layer_types": [names[sign] for sign in signs]}


SETTINGS = {
    "cohere": {},
    "cohere2": kinds("sssfsf"),
    "gemma": {},
    "gemma2": kinds("sfsfsf"),
    "gemma3_text": kinds("sssfsf"),
    "glm4": {},
    "llama": {},
    "ministral": kinds("sssfsf"),
    "mistral": WINDOW,
    "mixtral": {**WINDOW, "num_local_experts": 4},
    "olmo2": {},
    "olmo3": kinds("sssfsf"),
    "phi3": WINDOW,
    "qwen2": {**kinds("fffsss"), "use_sliding_window": True},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": {**kinds("fffsss"), "use_sliding_window": True},
    "qwen3_moe": EXPERTS,
    "smollm3": {"no_rope_layers": [1, 0, 1, 1, 0, 1]},
    "stablelm": {},
    "starcoder2": WINDOW,
}
"""What makes each backbone different from Llama, where its defaults do not."""


def make(place: Path, text: str) -> Path:
    """Write `source`, a LLaVA on this backbone, and `victor`, it converted and as if trained."""
    tiny_model(text=text, **SETTINGS[text]).save_pretrained(place / "source")
    tiny_processor().save_pretrained(place / "source")
    run(place / "source", place / "converted", flags={"victor.registers": 3})
    adapt(place / "converted").save_pretrained(place / "victor")
    return place


def adapt(folder: Path) -> VictorLlava:
    """Load a converted model and give it adapters that are not zero."""
    model = VictorLlava.from_pretrained(folder)
    model.victor.adapt(model.model.language_model.layers, ADAPTER)
    model.config.victor = {**model.config.victor, "adapter": ADAPTER}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for parameter in model.victor.adapters.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


if __name__ == "__main__":
    for name in SETTINGS:
        make(Path(sys.argv[1]) / name, name)
