"""The processes of a run: one, or several that each take their share of the work.

accelerate says which there are and what each computes on: `accelerate launch -m victorctl finetune`
with a configuration for several GPUs or for FSDP, or `victorctl finetune --processes N`. On several
machines, all must see the folder of the output.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import (
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    fsdp2_prepare_model,
    get_int_from_env,
    parse_choice_from_env,
    parse_flag_from_env,
)
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from victorctl.data.batches import IGNORED, EncodedRow
from victorctl.errors import VictorError
from victorctl.recipe import Run
from victorctl.runtime import resolve

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them.

    Args:
        accelerator: None where there is one process alone.
        sharded: Each holds a part of every weight alone (FSDP).
    """

    accelerator: Accelerator | None = None
    sharded: bool = False

    @classmethod
    def start(
        cls, run: Run, *, unused: bool = False, patience: timedelta | None = None
    ) -> "Processes":
        """Find the others, if a launcher has started several.

        Args:
            run: Where and on what.
            unused: Whether a weight that is trained may have no part in a step.
            patience: How long one may wait for another; None for accelerate's own limit, some
                minutes.

        Raises:
            VictorError: If each cannot have a GPU of its own, or the launcher's configuration asks
                for what is not done here.
        """
        if not distributed.is_torchelastic_launched():
            return cls()
        _check_configuration()
        resolve(run)
        if run.device.startswith("cuda:"):
            raise VictorError(
                f"--device {run.device}: one GPU, for several processes",
                fix="leave --device out; each process takes the next GPU",
            )
        here, there = int(get_int_from_env(["LOCAL_WORLD_SIZE"], 1)), torch.cuda.device_count()
        if run.device != "cpu" and 0 < there < here:
            raise VictorError(
                f"{here} processes, and {there} GPU here",
                fix=f"start {there}, or add --device cpu",
            )
        on_cpu = run.device == "cpu" or not torch.cuda.is_available()
        parallel = DistributedDataParallelKwargs(find_unused_parameters=unused)
        handlers = [parallel, InitProcessGroupKwargs(timeout=patience)]
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
        if sharded:
            plugin = FullyShardedDataParallelPlugin()
            if plugin.fsdp_version != 2:
                raise VictorError(
                    "the accelerate configuration asks for the first version of FSDP",
                    fix="set fsdp_version: 2 in it, or: victorctl recipes copy accelerate/fsdp2",
                )
            accelerator.state.fsdp_plugin = plugin  # which it leaves out on CPUs
        return cls(accelerator, sharded)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def number(self) -> int:
        """Which of them this is, from 0; the first one writes."""
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.number == 0

    def place(self, run: Run) -> Run:
        """Say what this process computes on; all but the first are quiet."""
        if self.accelerator is None:
            return run
        device = self.accelerator.device
        device = "cpu" if device.type == "cpu" else str(device)  # CPUs have no numbers
        return replace(run, device=device, quiet=run.quiet or not self.first)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Let gradients be the means over all processes; sharded weights are other objects then."""
        if self.sharded:
            return fsdp2_prepare_model(self.accelerator, module)
        return self.accelerator.prepare(module) if self.accelerator else module

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Take this process's part."""
        return items[self.number :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """Add values up over all processes."""
        return self.accelerator.reduce(values, reduction="sum") if self.accelerator else values

    def any(self, here: bool) -> bool:
        """Tell whether something holds in any process."""
        if self.accelerator is None:
            return here
        told = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.sum(told))

    def wait(self) -> None:
        """Wait for the others."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Part from the others; nothing is shared after this."""
        if self.accelerator:
            self.wait()
            distributed.destroy_process_group()

    def adding(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Surround the passes of a part of a step: gradients are shared at its last one."""
        if self.accelerator is None or last or self.sharded:
            return nullcontext()
        return self.accelerator.no_sync(module)

    def from_first(self, make: Callable[[], Item]) -> Item:
        """Let the first process make something, and give it to all."""
        made = [make() if self.first else None]
        if self.accelerator:
            broadcast_object_list(made)
        return made[0]


def _check_configuration() -> None:
    """Refuse what accelerate would do beside, or instead of, what is done here."""
    for engine in ("DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{engine}"):
            raise VictorError(
                f"the accelerate configuration asks for {engine}",
                fix="use one for several GPUs or for FSDP: victorctl recipes copy accelerate/fsdp2",
            )
    wanted = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if wanted != "no":
        raise VictorError(
            f"the accelerate configuration asks for mixed precision in {wanted}",
            fix='set mixed_precision: "no" in it, and add --dtype bf16, or to finetune --set '
            "train.autocast=bf16",
        )


def whole_tensor(value: Tensor) -> Tensor:
    """Put the parts of a tensor together that several processes hold; all must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def put(target: Tensor, value: Tensor) -> Tensor:
    """Lay out a whole tensor as another one is laid out: on its device, in parts if it is so."""
    value = value.to(target.device, copy=True)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


def deal(rows: Sequence[Item], pictured: Iterable[bool]) -> list[Item]:
    """Order rows so that dealing them out gives every part one with pictures, if there are enough.

    Args:
        rows: Of one step.
        pictured: Whether each has pictures.
    """
    pairs = sorted(zip(pictured, range(len(rows)), strict=True), key=lambda pair: not pair[0])
    return [rows[place] for _, place in pairs]


def mute(row: EncodedRow) -> EncodedRow:
    """Take a row's answers away: it is read as any other, and counts for nothing.

    Parts of a step that are all text read one beside it where others have pictures, so that every
    process runs the same layers.
    """
    said = row.conversations[0]
    silent = replace(said, labels=[IGNORED] * len(said.labels))
    return replace(row, conversations=(silent,))
