"""Measure what converting a large checkpoint costs, beside copying and hashing its files.

    python scripts/speed/converting.py --work WORK --out docs/results/converting.json

WORK gets a LLaVA of random numbers, several GB in shards. It is converted without its model being
built (`--verify hash --init embeddings`), in a process of its own, which tells its peak memory
above that of the imports. The same files are copied, and source and copy hashed, before and after.
Linux only.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SHARD = 1 << 30  # bytes
CONVERT = r"""
import json, re, sys
from pathlib import Path
from victorctl import recipe
from victorctl.convert import convert
status = Path("/proc/self/status")  # of this process alone; rusage begins with its parent's
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
before = peak()
flags = {"convert.verify": "hash", "victor.init": "embeddings"}
chosen = recipe.load_recipe(flags=flags)
run = recipe.Run(out=Path(sys.argv[2]), device="cpu", quiet=True)
found = convert(sys.argv[1], recipe=chosen, run=run)
told = {"seconds": found["seconds"], "imports": before, "peak": peak()}
print(json.dumps(told | {"hashes_equal": found["parity"]["hashes_equal"]}))
"""


def make_config(layers: int) -> LlavaConfig:
    """Describe a LLaVA with CLIP-L, 2,048 wide."""
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=layers,
        num_attention_heads=16,
    )
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return LlavaConfig(text_config=text, vision_config=tower, image_token_index=32000)


def make(folder: Path, layers: int) -> int:
    """Write the checkpoint in bfloat16, shard by shard, and return its bytes."""
    folder.mkdir(parents=True)
    config = make_config(layers)
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        names = LlavaForConditionalGeneration(config).state_dict()
    shards: list[dict[str, torch.Size]] = [{}]
    size = total = 0
    for name, tensor in names.items():
        if size > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.shape
        size += 2 * tensor.numel()
        total += 2 * tensor.numel()
    files = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    for file, shapes in zip(files, shards, strict=True):
        drawn = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})
    where = {name: file for file, shapes in zip(files, shards, strict=True) for name in shapes}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def copy_and_hash(source: Path, target: Path) -> float:
    """Copy every file, then hash both; seconds."""
    started = time.perf_counter()
    shutil.copytree(source, target)
    for folder in (source, target):
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as stream:
                hashlib.file_digest(stream, "sha256")
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def convert(source: Path, target: Path) -> dict[str, float]:
    """Convert in a process of its own."""
    words = [sys.executable, "-c", CONVERT, str(source), str(target)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    shutil.rmtree(target)
    return json.loads(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    source, target = chosen.work / "source", chosen.work / "target"
    size = make(source, chosen.layers)
    copies, runs = [copy_and_hash(source, target)], []
    for _ in range(chosen.repeats):
        runs.append(convert(source, target))
        copies.append(copy_and_hash(source, target))
    found = {
        "bytes": size,
        "copy_and_hash_seconds": fmean(copies),
        "convert_seconds": fmean(run["seconds"] for run in runs),
        "ratio": fmean(run["seconds"] for run in runs) / fmean(copies),
        "memory_above_imports": max(run["peak"] - run["imports"] for run in runs),
        "runs": {"copy_and_hash": copies, "convert": runs},
    }
    print(json.dumps(found, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(chosen.work)
