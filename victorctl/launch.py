"""Start a command in several processes on this machine, and wait for them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack

from victorctl.errors import VictorError

OPTION = "--processes"
LOOK = 0.1  # seconds between two looks at the processes
PATIENCE = 30.0  # seconds that the others have to end by themselves when one has failed


def is_first() -> bool:
    """Tell whether this process is the one that speaks, of all that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def several(count: int) -> int:
    """Run the command line that is running in so many processes instead.

    The first one's output is shown; what the others have to say, where it has not failed itself.

    Args:
        count: Processes; 1 is none but this one.

    Returns:
        The exit code: the first one's, else that of the first to fail.
    """
    if count < 1:
        raise VictorError(f"{OPTION} {count}: at least one is needed", fix=f"use {OPTION} 1")
    words = [sys.executable, "-m", "victorctl", *_without(sys.argv[1:])]
    shared = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count)),
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RUN_ID": "victorctl",
    }
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        started = []
        for rank in range(count):
            own = {"stdout": subprocess.DEVNULL, "stderr": said[rank]} if rank else {}
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(stack.enter_context(subprocess.Popen(words, env=shared | ranks, **own)))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # each of them heard it, too
        stack.callback(signal.signal, signal.SIGINT, before)
        codes = _wait(started)
        if codes[0] <= 0 and any(codes):  # ended, or was ended, without a word of its own
            _show(said[next(rank for rank, code in enumerate(codes) if code)])
    return codes[0] if codes[0] > 0 else next((code for code in codes if code > 0), abs(codes[0]))


def _without(words: Sequence[str]) -> list[str]:
    """Leave the option out that asks for several processes."""
    kept, skip = [], False
    for word in words:
        if not skip and word != OPTION and not word.startswith(f"{OPTION}="):
            kept.append(word)
        skip = word == OPTION and not skip
    return kept


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(started: Sequence[subprocess.Popen]) -> list[int]:
    """Wait for all; when one has failed, the others wait for it in vain, and are ended."""
    deadline = None
    while any(process.poll() is None for process in started):
        time.sleep(LOOK)
        failed = any(process.returncode for process in started)
        if failed and deadline is None:
            deadline = time.monotonic() + PATIENCE
            for process in started:
                process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                process.kill()
    return [process.returncode for process in started]


def _show(said: tempfile._TemporaryFileWrapper) -> None:
    said.seek(0)
    sys.stderr.write(said.read().decode(errors="replace"))
