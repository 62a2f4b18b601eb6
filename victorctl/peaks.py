"""How much memory a piece of work takes at its most, told apart from what was there before."""

import ctypes
import gc
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from victorctl.errors import VictorError
from victorctl.runtime import peak_memory

RESET = Path("/proc/self/clear_refs")  # Linux: 5 makes the peak what is taken now

MMAP_THRESHOLD, LARGE = -3, 1 << 16  # of glibc's mallopt; bytes


class Peak(NamedTuple):
    """Bytes at the most, None where they cannot be measured.

    Args:
        whole: Above what was there once all was imported: weights and all.
        step: Above what was there before the work.
    """

    whole: int | None
    step: int | None


def hold_only_what_is_used() -> None:
    """Let glibc give blocks of memory back as they are freed, from now on; elsewhere do nothing."""
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell:
        tell(MMAP_THRESHOLD, LARGE)


def taken(device: torch.device) -> int:
    """Bytes that this process holds on a device, what is free for others given back first."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    return psutil.Process().memory_info().rss


def peak_of(work: Callable[[], Any], device: torch.device) -> int | None:
    """Do some work, and tell how many bytes this process held at the most meanwhile.

    Returns:
        Of a GPU, what its tensors took; of a CPU, what the process did, libraries and all. None
        where the system does not let the peak begin anew.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    try:
        RESET.write_text("5")
    except OSError:
        return None
    work()
    return peak_memory()


def measure(
    prepare: Callable[[], Callable[[], Any]], device: torch.device, *, imports: int
) -> Peak:
    """Measure some work.

    Args:
        prepare: Makes what the work needs, does what comes but once, and gives the work.
        device: Where it is done.
        imports: What `taken` told before anything was made.
    """
    work = prepare()
    before = taken(device)
    peak = peak_of(work, device)
    return Peak(None, None) if peak is None else Peak(peak - imports, peak - before)


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Do some work in a process of its own: what others have freed is not that one's.

    Ctrl-C ends it without a word, as this process has its say.
    """
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    ) as pool:
        return pool.submit(work, *given).result()


@contextmanager
def fitting(what: str, fix: str) -> Iterator[None]:
    """Let full memory be an error that says how to need less.

    Args:
        what: What needed too much.
        fix: What to change.
    """
    try:
        yield
    except (BrokenProcessPool, torch.OutOfMemoryError) as error:
        raise VictorError(
            f"{what} was ended before it was done: memory ran out, most likely", fix=fix
        ) from error
