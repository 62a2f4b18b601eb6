"""What surrounds a stage's computation: device, number format, threads, seeds, progress."""

import platform
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from victorctl import __version__
from victorctl.errors import VictorError
from victorctl.recipe import Run

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ATTENTIONS = ("sdpa", "eager")
SECONDS_BETWEEN_LINES = 10.0
MEGABYTE = 10**6


def resolve(run: Run) -> tuple[torch.device, torch.dtype | Literal["auto"]]:
    """Turn a run's words into what torch takes, and check them against this machine.

    Returns:
        The device, and the dtype or "auto" (as the weights are stored).

    Raises:
        VictorError: If the device, dtype or attention is unknown or not here.
    """
    device = _device(run.device)
    if run.dtype != "auto" and run.dtype not in DTYPES:
        raise VictorError(
            f"--dtype {run.dtype}: no such number format", fix=f"use auto, {', '.join(DTYPES)}"
        )
    _check_attention(run.attn)
    return device, "auto" if run.dtype == "auto" else DTYPES[run.dtype]


def attention(run: Run) -> str | None:
    """Say to transformers which attention to use; None is sdpa, or eager in parts without it."""
    return None if run.attn == Run.attn else run.attn


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads; None keeps torch's own choice."""
    if threads is None:
        return
    if threads < 1:
        raise VictorError(f"--threads {threads}: at least one is needed", fix="use --threads 1")
    torch.set_num_threads(threads)


def free_memory(device: torch.device) -> int:
    """Bytes that a model may still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def peak_memory() -> int:
    """Bytes that this process took at the most."""
    status = Path("/proc/self/status")  # rusage begins with what the parent took
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory_on(device: torch.device) -> int:
    """Bytes that this process took at the most on a device; on a CPU, all of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Name what computed: no user name and no path."""
    return {
        "victorctl": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def say(text: str, *, quiet: bool) -> None:
    """Tell a person on stderr what happens next."""
    if not quiet:
        Console(stderr=True).print(Text(text, "bold"), soft_wrap=True)


class Counter:
    """Counts what is done, and tells whoever shows it.

    Args:
        done: How much was done before.
        show: Called after each step with what is done and a text such as "loss 0.31".
    """

    def __init__(self, done: int, show: Callable[[int, str], None]) -> None:
        self.done = done
        self._show = show

    def advance(self, amount: int = 1, text: str = "") -> None:
        """Add what was just done, with a text that stands beside the count."""
        self.done += amount
        self._show(self.done, text)


@contextmanager
def progress(
    description: str, total: int, *, quiet: bool, done: int = 0, ticking: bool = True
) -> Iterator[Counter]:
    """Show on stderr how far a loop is: a bar on a terminal, else a line now and then.

    Args:
        description: What is being done, such as "finetune".
        total: How much there is to do.
        quiet: Show nothing.
        done: How much was done before, when a run is resumed.
        ticking: False draws between steps only: no clock disturbs what is timed.
    """
    if quiet:
        yield Counter(done, lambda _done, _text: None)
    elif sys.stderr.isatty():
        with Progress(*_columns(), console=Console(stderr=True), auto_refresh=ticking) as bar:
            task = bar.add_task(description, total=total, completed=done, text="")

            def show(now: int, text: str) -> None:
                bar.update(task, completed=now, text=text, refresh=not ticking)

            yield Counter(done, show)
    else:
        lines = _Lines(description, total, done)
        yield Counter(done, lines.show)
        lines.close()


@contextmanager
def reading(description: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show on stderr how much of some files was read, in megabytes.

    Args:
        description: What is being done.
        total: Bytes.
        quiet: Show nothing.

    Yields:
        What is told of every so many bytes.
    """
    read = 0
    with progress(f"{description}, MB", total // MEGABYTE, quiet=quiet) as bar:

        def advance(count: int) -> None:
            nonlocal read
            before, read = read // MEGABYTE, read + count
            bar.advance(read // MEGABYTE - before)

        yield advance


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise VictorError(f"--device {name}: no such device", fix="use auto, cpu, cuda or cuda:0")
    if kind == "cuda" and not torch.cuda.is_available():
        raise VictorError(
            f"--device {name}: torch {torch.__version__} sees no GPU here",
            fix="use --device cpu, or install a torch with CUDA and a driver; see victorctl doctor",
        )
    if colon and int(index) >= torch.cuda.device_count():
        raise VictorError(
            f"--device {name}: torch sees {torch.cuda.device_count()} GPU here, counted from 0",
            fix="use --device cuda:0",
        )
    return torch.device(name)


def _check_attention(name: str) -> None:
    if name.startswith("flash_attention"):
        raise VictorError(
            f"--attn {name}: takes the gap that dropped tokens leave in the positions for the "
            "start of another text",
            fix="use --attn sdpa, which runs flash kernels on a GPU",
        )
    if name not in ATTENTIONS:
        raise VictorError(f"--attn {name}: no such attention", fix=f"use {', '.join(ATTENTIONS)}")


def _columns() -> list[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn]:
    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    ]


class _Lines:
    """Progress for a log: one line every ten seconds, and one at the end."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.before = description, total, done
        self.started = self.shown = time.monotonic()
        self.last, self.unshown = (done, ""), True

    def show(self, done: int, text: str) -> None:
        self.last, self.unshown = (done, text), True
        if time.monotonic() - self.shown >= SECONDS_BETWEEN_LINES:
            self._write()

    def close(self) -> None:
        if self.unshown:
            self._write()

    def _write(self) -> None:
        self.shown, self.unshown = time.monotonic(), False
        (done, text), elapsed = self.last, self.shown - self.started
        parts = [f"{self.description} {done}/{self.total}", f"{_clock(elapsed)} elapsed"]
        if self.before < done < self.total:
            parts.append(f"{_clock(elapsed * (self.total - done) / (done - self.before))} left")
        say(" · ".join([*parts, text] if text else parts), quiet=False)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
