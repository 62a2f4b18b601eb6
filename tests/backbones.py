"""A tiny Victor model on every backbone that is said to be tested, made as a user makes it.

    python -m tests.backbones FOLDER

writes them all, a folder each, for `tests/modeling/laws.py`.
"""

import sys
from pathlib import Path
from typing import Any

from tests import families
from tests.tiny import tiny_model, tiny_processor

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
    """Write the case of a LLaVA on this backbone."""
    model = tiny_model(text=text, **SETTINGS[text])
    tiny_processor().save_pretrained(place / "source")
    model.save_pretrained(place / "source")
    return families.convert(place, model, "llava")


if __name__ == "__main__":
    for name in SETTINGS:
        make(Path(sys.argv[1]) / name, name)
