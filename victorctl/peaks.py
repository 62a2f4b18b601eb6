"""How much memory a piece of work takes at its most, told apart from what was there before."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from victorctl.runtime import peak_memory

RESET = Path("/proc/self/clear_refs")  # Linux: 5 makes the peak what is taken now

MMAP_THRESHOLD, LARGE = -3, 1 << 16  # of glibc's mallopt; bytes


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
