"""Which machines a training run fits on, how long it takes there, and what to change if not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from victorctl.cost import Shape
from victorctl.estimate import Load, Method, step_flops
from victorctl.memory import FIXED, SINGLE, SPARE, memory
from victorctl.units import size

USED = 0.4  # share of its peak at which a GPU is assumed to compute
GIB = 2**30
MOST = 2**20  # pictures in one part of a step, at which the search for the largest batch ends


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind.

    Args:
        name: Such as `8x80GB`.
        gpus: How many.
        gpu: What each is taken to be.
        room: Bytes of memory of each.
        half: Peak FLOPs a second of each in bfloat16, without sparsity.
        single: The same in float32, as torch computes it unless told otherwise.
    """

    name: str
    gpus: int
    gpu: str
    room: int
    half: float
    single: float


MACHINES = (
    Machine("1x24GB", 1, "RTX 4090", 24 * GIB, 165e12, 82.6e12),
    Machine("1x80GB", 1, "A100", 79 * GIB, 312e12, 19.5e12),
    Machine("8x80GB", 8, "A100", 79 * GIB, 312e12, 19.5e12),
)
"""Peaks are those of NVIDIA's data sheets; of 80 GB, CUDA shows 79 GiB."""


@dataclass(frozen=True)
class Task:
    """A training run.

    Args:
        shape: Sizes of the model.
        method: How it is trained.
        load: All that one optimiser step reads.
        accumulate: Parts in which it does so.
        steps: Optimiser steps.
        asked: Of these, those in which the teacher is asked what it was not asked before.
    """

    shape: Shape
    method: Method
    load: Load
    accumulate: int
    steps: int
    asked: int

    def part(self, machine: Machine, pictures: int | None = None) -> Load:
        """Say what a GPU reads at once, in a step of so many pictures."""
        return self.load.resized(-(-(pictures or self.load.rows) // self.parts(machine)))

    def parts(self, machine: Machine) -> int:
        """Count the parts of a step that are apart, in time or on other GPUs."""
        return min(self.load.rows, self.accumulate * machine.gpus)

    def flops(self, *, asked: bool) -> float:
        """Count the FLOPs of a step, whether or not the teacher is asked in it."""
        live = asked and self.method.teacher == "live"
        quiet = replace(self.method, teacher="live" if live else "cached")
        return step_flops(self.shape, quiet, self.load)


def estimate(task: Task, assumptions: list[str]) -> dict[str, Any]:
    """Estimate what a run needs on every machine.

    Args:
        task: The run.
        assumptions: What is assumed of it, one sentence each.

    Returns:
        `memory_bytes` of one GPU that does it all, `flops_per_step`, `machines`, `assumptions`.
    """
    one = task.part(MACHINES[0])
    return {
        "memory_bytes": memory(task.shape, task.method, one),
        "flops_per_step": task.flops(asked=task.asked > 0),
        "machines": [_on(task, machine) for machine in MACHINES],
        "assumptions": [*assumptions, *_always(task)],
    }


def _on(task: Task, machine: Machine) -> dict[str, Any]:
    """Estimate a run on one machine; times are those after the `change`, where one is needed."""
    needed, sharding = _needed(task, machine, task.part(machine))
    fits = needed <= machine.room
    change, changed = (None, task) if fits else _change(task, machine)
    seconds = changed and _seconds(changed, machine)
    return {
        "name": machine.name,
        "fits": fits,
        "memory_bytes": needed,
        "sharding": sharding,
        "largest_batch": _largest(task, machine),
        "seconds_per_step": seconds and seconds / task.steps,
        "hours": seconds and seconds / 3600,
        "change": change,
    }


def _needed(task: Task, machine: Machine, load: Load) -> tuple[int, str]:
    """Count what a GPU needs; the model is shared out among several only where it must be."""
    alone = memory(task.shape, task.method, load, processes=machine.gpus)["total"]
    if machine.gpus == 1:
        return alone, "none"
    if alone <= machine.room:
        return alone, "ddp"
    shared = memory(task.shape, task.method, load, processes=machine.gpus, sharded=True)
    return shared["total"], "fsdp"


def _largest(task: Task, machine: Machine) -> int:
    """Search for the largest number of pictures in a step that fits; 0 for none."""

    def fits(rows: int) -> bool:
        return _needed(task, machine, task.load.resized(rows))[0] <= machine.room

    low, high = 0, 1
    while high < MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * machine.gpus * task.accumulate


def _seconds(task: Task, machine: Machine) -> float:
    peak = machine.single if task.method.computed == SINGLE else machine.half
    flops = task.asked * task.flops(asked=True)
    flops += (task.steps - task.asked) * task.flops(asked=False)
    return flops / (machine.gpus * peak * USED)


def _change(task: Task, machine: Machine) -> tuple[str, Task | None]:
    """Say what to change so that it fits, and what the run is then; None where nothing helps."""
    for option, other in _alternatives(task, machine):
        if _needed(other, machine, other.part(machine))[0] <= machine.room:
            return option, other
    found = memory(task.shape, task.method, task.load.resized(1))
    kept = size(found["weights"] + found["optimizer"])
    return f"no key is enough: weights and optimizer alone are {kept}", None


def _alternatives(task: Task, machine: Machine) -> Iterator[tuple[str, Task]]:
    """List changes of the recipe that save memory, the least first."""
    parts, smaller = task.accumulate, []
    while parts * machine.gpus < task.load.rows:
        parts = min(2 * parts, -(-task.load.rows // machine.gpus))
        smaller.append((f"train.accumulate={parts}", replace(task, accumulate=parts)))
    yield from smaller
    again = replace(task.method, checkpointing=True)
    if not task.method.checkpointing:
        for option, other in [("", task), *smaller]:
            more = f"{option} train.checkpointing=true".strip()
            yield more, replace(other, method=again)


def _always(task: Task) -> list[str]:
    """Say what every estimate assumes."""
    kinds = {each.gpu: each for each in MACHINES}.values()
    single = task.method.computed == SINGLE
    peaks = " and ".join(
        f"{(each.single if single else each.half) / 1e12:.4g} (24 GB: {each.gpu})"
        if each.gpus * each.room == 24 * GIB
        else f"{(each.single if single else each.half) / 1e12:.4g} (80 GB: {each.gpu})"
        for each in kinds
    )
    return [
        f"GPUs compute at {USED:.0%} of their peak, {peaks} TFLOP/s; reading data and talking "
        "between GPUs take no time.",
        f"{size(FIXED)} and {SPARE:.0%} of what a step needs are allowed for libraries and gaps.",
        *task.shape.omissions,
    ]
