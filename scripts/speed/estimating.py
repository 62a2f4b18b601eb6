"""Compare what `finetune --dry-run` estimates with what PyTorch counts, on small random models.

    python scripts/speed/estimating.py --out docs/results/estimate.json

One step of `Distillation` runs on the CPU for each model, rung and number format. Counted are the
FLOPs of its matrix products, the bytes that autograd keeps, weights aside, and the most bytes that
are alive at once. All three are the same on every run.
"""

import argparse
import contextlib
import itertools
import json
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from victorctl.collation import Batch
from victorctl.cost import shape_of
from victorctl.distill import Distillation
from victorctl.estimate import Method, step_flops
from victorctl.foresight import load_of, method_of
from victorctl.memory import memory, saved_bytes
from victorctl.modeling_victor import VictorLlava
from victorctl.rungs import choose_parameters
from victorctl.sections import TrainSection
from victorctl.teacher import TeacherCache

IMAGE = 5  # token id of a placeholder
REGISTERS, RANK = 4, 8
aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """Sizes of a model, and of what it reads."""

    name: str
    layers: int = 6
    drop_layer: int = 2
    width: int = 64
    mlp: int = 160
    heads: int = 4
    kv_heads: int = 4
    vocab: int = 301
    picture: int = 32
    """Side in pixels; a visual token covers 4 x 4."""
    rows: int = 2
    questions: int = 2
    text: int = 20
    answer: int = 6


CASES = (
    Case("tiny"),
    Case("grouped queries", kv_heads=2, width=96, mlp=256),
    Case("large vocabulary", vocab=8000),
    Case("wide", layers=8, drop_layer=3, width=256, mlp=688, picture=64, text=60),
    Case("long", layers=10, width=128, mlp=344, picture=96, rows=3, text=100),
)
RUNGS = ("registers", "deep", "register-lora", "lora-early", "lora", "full")
FORMATS = {  # of weights, and the recipe's `autocast`
    "fp32": (torch.float32, "none"),
    "bf16": (torch.bfloat16, "none"),
    "fp32, autocast": (torch.float32, "bf16"),
}


def build(case: Case, dtype: torch.dtype) -> VictorLlava:
    """Build a converted model with random weights."""
    text = LlamaConfig(
        num_hidden_layers=case.layers,
        hidden_size=case.width,
        intermediate_size=case.mlp,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        vocab_size=case.vocab,
        dtype=dtype,
    )
    vision = CLIPVisionConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        image_size=case.picture,
        patch_size=4,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, dtype=dtype
    )
    config.victor = {
        "registers": REGISTERS,
        "drop_layer": case.drop_layer,
        "positions": "overlay",
        "adapter": None,
    }
    torch.manual_seed(0)
    return VictorLlava(config).to(dtype)


def draw(case: Case) -> Batch:
    """Draw questions about random pictures, all equally long."""
    start = torch.tensor([[1] * 4 + [IMAGE] * (case.picture // 4) ** 2] * case.rows)
    count = case.rows * case.questions
    words = torch.arange(count * case.text).view(count, -1) % 100 + 6
    labels = torch.full_like(words, -100)
    labels[:, -case.answer :] = words[:, -case.answer :]
    return Batch(
        images={"pixel_values": torch.randn(case.rows, 3, case.picture, case.picture)},
        prefix=start,
        prefix_mask=torch.ones_like(start),
        row=torch.arange(case.rows).repeat_interleave(case.questions),
        suffix=words,
        suffix_mask=torch.ones_like(words),
        labels=labels,
        keys=tuple(number.to_bytes(16, "big") for number in range(count)),
    )


class Alive(TorchDispatchMode):
    """Count the bytes of what is computed and not yet forgotten.

    Args:
        others: Storages that do not count.
    """

    def __init__(self, others: list[torch.UntypedStorage]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakSet(others)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor) and value.untyped_storage() not in self.known:
                storage = value.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.forget, storage.nbytes())
        return made

    def forget(self, count: int) -> None:
        """Count bytes that nothing holds any more."""
        self.now -= count


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count attention's products."""
    return sdpa_flop_count(query, key, value)


def attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the products of its gradients."""
    return sdpa_backward_flop_count(grad, query, key, value)


ON_CPU = {  # which PyTorch's counter does not know
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


@contextlib.contextmanager
def keeping(others: list[torch.UntypedStorage]) -> Iterator[list[torch.UntypedStorage]]:
    """Collect the storages that autograd keeps, each once, but for others."""
    kept: list[torch.UntypedStorage] = []
    known = {storage.data_ptr() for storage in others}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept.append(storage)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield kept


def measure(
    case: Case, rung: str, numbers: str = "fp32", *, checkpointing: bool = False
) -> dict[str, Any]:
    """Take one step, and compare what was counted with what is estimated."""
    dtype, autocast = FORMATS[numbers]
    train = TrainSection(rung=rung, rank=RANK, autocast=autocast, checkpointing=checkpointing)
    model, batch = build(case, dtype), draw(case)
    parameters = choose_parameters(model, train)
    with tempfile.TemporaryDirectory() as folder:
        known = TeacherCache({}, Path(folder)) if train.moves_teacher else None
        step = Distillation(model, train, known)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "bf16"):
            if known:
                step(batch, ask=True)
            found = count(step, batch, model)
    shape, load = shape_of(model.config), load_of(batch, IMAGE)
    method = method_of(
        shape,
        train,
        registers=REGISTERS,
        drop_layer=case.drop_layer,
        stored=dtype.itemsize,
        trained=sum(value.numel() for value in parameters.values()),
        parameters=sum(value.numel() for value in model.parameters()),
    )
    if known:
        method = replace(method, teacher="cached")
    return {
        "model": case.name,
        "rung": rung,
        "numbers": numbers,
        "checkpointing": checkpointing,
        "counted": found,
        "estimated": {
            "flops": step_flops(shape, method, load),
            "kept_bytes": round(saved_bytes(shape, method, load)),
            "most_bytes": most(memory(shape, method, load), method),
        },
    }


def count(step: Distillation, batch: Batch, model: VictorLlava) -> dict[str, int]:
    """Count FLOPs, and bytes that are kept and alive, of a step forward and back."""
    own = [value.untyped_storage() for value in model.parameters()]
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with counter:
        step(batch).total.backward()
    model.zero_grad()
    alive = Alive(own)
    with alive:
        with keeping(own) as kept:
            loss = step(batch).total
        kept_bytes = sum(storage.nbytes() for storage in kept)
        kept.clear()
        loss.backward()
    return {
        "flops": counter.get_total_flops(),
        "kept_bytes": kept_bytes,
        "most_bytes": alive.most,
    }


def most(found: dict[str, int], method: Method) -> int:
    """Take out of an estimate what is compared: neither weights nor moments nor the allowance."""
    gradients = 4 * method.trained
    return gradients + max(found["activations"] + found["workspace"], found["teacher"])


def everything() -> Iterator[dict[str, Any]]:
    """Measure every model, rung and number format, and checkpointing."""
    for case, rung, numbers, again in itertools.product(CASES, RUNGS, FORMATS, (False, True)):
        if rung == "full" and numbers == "bf16":
            continue  # what is trained is in float32
        yield measure(case, rung, numbers, checkpointing=again)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows = []
    for row in everything():
        ratios = {key: row["estimated"][key] / value for key, value in row["counted"].items()}
        print(row["model"], row["rung"], row["numbers"], row["checkpointing"], ratios, flush=True)
        rows.append(row)
    chosen.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
