"""Measure how much of the FLOPs that Victor saves in the prefill it also saves in time.

    python scripts/speed/prefill.py --out docs/results/prefill.json
    python scripts/speed/prefill.py --profile

A LLaVA with random weights and LLaVA-1.5's proportions in a narrow language model: 32 layers, the
visual tokens leave before layer 3; 576 visual and 64 other tokens, 8 registers. The unconverted
model and Victor read the same prompts by turns, in one process; the native class without any of
Victor's code stands beside them. The vision tower is left out: both see the same features.
`--profile` shows where the time of one Victor prefill goes, operator by operator.
"""

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from victorctl import cost
from victorctl.modeling_victor import VictorLlava
from victorctl.timing import by_turns

LAYERS, DROP_LAYER = 32, 3
VISUAL, TEXT, REGISTERS = 576, 64, 8
IMAGE = 1  # id of the placeholder
CASES = (("float32", 1), ("float32", 4), ("bfloat16", 1))


def make_config(width: int) -> LlavaConfig:
    """Describe LLaVA-1.5 with a narrow language model; heads are as wide as the real ones'."""
    text = LlamaConfig(
        vocab_size=32064 // 8,
        hidden_size=width,
        intermediate_size=width * 11008 // 4096,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        max_position_embeddings=4096,
    )
    tower = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=336,
        patch_size=14,
    )
    victor = {"registers": REGISTERS, "drop_layer": DROP_LAYER, "positions": "overlay"}
    return LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=IMAGE,
        image_seq_length=VISUAL,
        tie_word_embeddings=False,
        victor=victor,
    )


def make_models(width: int, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Build Victor and, around the same weights, the native class."""
    config = make_config(width)
    torch.manual_seed(0)
    victor = VictorLlava(config).to(dtype).eval()
    with torch.device("meta"):
        native = LlavaForConditionalGeneration(config)
    native = native.to_empty(device="cpu").to(dtype).eval()
    weights = {name: value for name, value in victor.state_dict().items() if "victor." not in name}
    native.load_state_dict(weights, assign=True)
    rotary = victor.model.language_model.rotary_emb
    native.model.language_model.rotary_emb = rotary  # its buffers are in no state dict
    return {"victor": victor, "native": native}


def make_prompts(batch: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Draw prompts of one shape: some text, a picture, the rest of the text."""
    torch.manual_seed(batch)
    ids = torch.randint(2, 4000, (batch, VISUAL + TEXT))
    ids[:, TEXT // 2 : TEXT // 2 + VISUAL] = IMAGE
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "features": [torch.randn(VISUAL, width).to(dtype) for _ in range(batch)],
    }


@torch.inference_mode()
def prefill(model: torch.nn.Module, prompts: dict[str, Any]) -> torch.Tensor:
    """Read prompts whose pictures are seen already, and foretell the next token of each."""
    given = dict(prompts)
    seen = BaseModelOutputWithPooling(None, given.pop("features"))
    seen = {"image": seen}
    return model(**given, mm_encoder_outputs=seen, use_cache=True, logits_to_keep=1).logits


def unconverted(model: VictorLlava, prompts: dict[str, Any]) -> torch.Tensor:
    """Read prompts with registers off."""
    with model.registers_off():
        return prefill(model, prompts)


def bound(width: int) -> dict[str, int]:
    """Count the FLOPs of one prompt for the base and for Victor."""
    shape = cost.shape_of(make_config(width))
    count = partial(cost.tokens_per_layer, LAYERS, visual=VISUAL, text=TEXT)
    base = cost.prefill_flops(shape, count(drop_layer=LAYERS, registers=0))
    return {
        "base": base,
        "victor": cost.prefill_flops(shape, count(drop_layer=DROP_LAYER, registers=REGISTERS)),
    }


def few_rows(width: int, dtype: torch.dtype, batch: int, repeats: int) -> float:
    """Measure how fast the products of late layers run beside those of the base's.

    Returns:
        FLOPs per second of a matrix product with as many rows as Victor's late layers have tokens,
        over those of one with as many as the base has: less than one where few rows cost more each.
    """
    rows = {"base": VISUAL + TEXT, "victor": TEXT + REGISTERS}
    matrix = torch.nn.Linear(width, width * 11008 // 4096, bias=False).to(dtype)
    given = {name: torch.randn(batch * count, width).to(dtype) for name, count in rows.items()}

    @torch.inference_mode()
    def multiply(name: str) -> None:
        for _ in range(20 * rows["base"] // rows[name]):
            matrix(given[name])

    runs = {name: partial(multiply, name) for name in rows}
    seconds = by_turns(runs, repeats=3 * repeats, device=torch.device("cpu"))
    done = {name: count * (20 * rows["base"] // count) for name, count in rows.items()}
    return (done["victor"] / seconds["victor"]) / (done["base"] / seconds["base"])


def measure(width: int, repeats: int) -> list[dict[str, Any]]:
    """Time every case; speed-ups are over the faster of the two ways to be the base."""
    flops = bound(width)
    ratio = flops["base"] / flops["victor"]
    rows = []
    for name in dict.fromkeys(dtype for dtype, _ in CASES):
        dtype = getattr(torch, name)
        models = make_models(width, dtype)
        for batch in (size for kind, size in CASES if kind == name):
            prompts = make_prompts(batch, width, dtype)
            runs = {
                "native": partial(prefill, models["native"], prompts),
                "victor": partial(prefill, models["victor"], prompts),
                "unconverted": partial(unconverted, models["victor"], prompts),
            }
            seconds = by_turns(runs, repeats=repeats, device=torch.device("cpu"))
            speedup = min(seconds["native"], seconds["unconverted"]) / seconds["victor"]
            row = {"dtype": name, "batch_size": batch, "seconds": seconds}
            row |= {"speedup": speedup, "bound": ratio, "share_of_bound": speedup / ratio}
            row["rate_of_few_rows"] = few_rows(width, dtype, batch, repeats)
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def show_profile(width: int) -> None:
    """Print the operators of one Victor prefill, the costliest first."""
    victor, prompts = (
        make_models(width, torch.float32)["victor"],
        make_prompts(4, width, torch.float32),
    )
    prefill(victor, prompts)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        prefill(victor, prompts)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="of the language model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.profile:
        show_profile(chosen.width)
    else:
        found = {
            "layers": LAYERS,
            "drop_layer": DROP_LAYER,
            "visual_tokens": VISUAL,
            "text_tokens": TEXT,
            "registers": REGISTERS,
            "width": chosen.width,
            "flops": bound(chosen.width),
            "threads": chosen.threads,
            "repeats": chosen.repeats,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "rows": measure(chosen.width, chosen.repeats),
        }
        if chosen.out:
            chosen.out.write_text(json.dumps(found, indent=1) + "\n")
