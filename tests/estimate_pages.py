"""The generated part of docs/estimate.md: what training is estimated to need, and how well."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers

from victorctl.checkpoint import load_config
from victorctl.families import family_of
from victorctl.features import count_visual_tokens, outline
from victorctl.foresight import of_config
from victorctl.machines import MACHINES
from victorctl.recipe import load_recipe
from victorctl.recipes import find
from victorctl.units import size

PUBLISHED = Path(__file__).parent / "published"
STORED = Path(__file__).parent.parent / "docs" / "results" / "estimate.json"
MODELS = (
    "llava-1.5-7b-hf",
    "llava-1.5-13b-hf",
    "llava-v1.6-mistral-7b-hf",
    "llava-onevision-qwen2-7b-ov-hf",
)
RUNGS = {"registers": "none", "register-lora": "none", "lora": "none", "full": "bf16"}
"""With the recipe's `train.autocast`; without it, `full` computes in float32."""
PICTURE = 480, 640
COUNTS = {"flops": "FLOPs", "kept_bytes": "bytes kept", "most_bytes": "most bytes at once"}

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]


@functools.cache
def published(name: str) -> tuple[Any, Any, int]:
    """Read a published model's configuration: itself, its sizes, and a picture's tokens."""
    folder = PUBLISHED / name
    config = load_config(folder)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    native = getattr(transformers, family_of(raw, name).native)
    return config, outline(native, config, PICTURE), count_visual_tokens(native, config, PICTURE)


def estimated(name: str, **train: Any) -> dict[str, Any]:
    """Estimate what a published model's training needs, with the recipe for LLaVA-1.5-7B."""
    flags = {f"train.{key}": value for key, value in train.items()}
    recipe = load_recipe(find("llava-1.5-7b/victor"), flags=flags)
    config, seen, visual = published(name)
    chosen = {"registers": recipe.victor.registers, "drop_layer": recipe.victor.drop_layer}
    return of_config(config, recipe.train, seen, visual=visual, victor=chosen)


def block(table: Table, compared: Path) -> str:
    """Show all models and machines, and how the formulas compare with counts."""
    head = ("model", "rung", "memory, one GPU", *(machine.name for machine in MACHINES))
    return "\n\n".join(
        (
            table(head, list(needs())),
            "\n".join(f"* {sentence}" for sentence in assumptions()),
            table(("rung", "models", *COUNTS.values()), list(ratios(compared))),
        )
    )


@functools.cache
def needs() -> tuple[tuple[str, ...], ...]:
    return tuple(row(name, rung) for name in MODELS for rung in RUNGS)


def row(name: str, rung: str) -> tuple[str, ...]:
    found = estimated(name, rung=rung, autocast=RUNGS[rung])
    cells = [cell(one) for one in found["machines"]]
    return (name, f"`{rung}`", size(found["memory_bytes"]["total"]), *cells)


def cell(one: dict[str, Any]) -> str:
    """Say how long a step takes, and what to change for that; or that nothing helps."""
    if one["seconds_per_step"] is None:
        return "does not fit"
    seconds = f"{one['seconds_per_step']:.2g} s"
    if not one["fits"]:
        return f"{seconds}, with `{one['change']}`"
    sharded = ", FSDP" if one["sharding"] == "fsdp" else ""
    return f"{seconds}{sharded}; up to {one['largest_batch']} pictures"


def assumptions() -> list[str]:
    return estimated(MODELS[0], rung="register-lora")["assumptions"]


def ratios(compared: Path) -> Iterator[tuple[str, ...]]:
    """Show for each rung what is estimated, in parts of what was counted."""
    rows = json.loads(compared.read_text(encoding="utf-8"))["rows"]
    for rung in dict.fromkeys(row["rung"] for row in rows):
        own = [row for row in rows if row["rung"] == rung]
        parts = {
            count: [row["estimated"][count] / row["counted"][count] for row in own]
            for count in COUNTS
        }
        cells = (f"{min(part):.3f}\u2013{max(part):.3f}" for part in parts.values())
        yield (f"`{rung}`", str(len(own)), *cells)
