"""Start a command in several processes on this machine, and wait for them."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, NamedTuple

from victorctl.errors import VictorError

OPTION = "--processes"
LOOK = 0.1  # seconds between two looks at the processes
MOMENT = 3.0  # seconds that processes may lie behind each other
PATIENCE = 30.0  # seconds that processes have to end by themselves when they are told to
DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG
LAUNCHER = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun or accelerate has started


class Worker(NamedTuple):
    """A process, and what it says on stderr; None where that is shown at once."""

    process: subprocess.Popen
    said: IO[bytes] | None


def is_first() -> bool:
    """Tell whether this process is the one that speaks, of all that a launcher has started."""
    return LAUNCHER not in os.environ or os.environ.get("RANK", "0") == "0"


def let_the_first_speak() -> None:
    """Wait, in another process than the first, for that one to fail in the same way."""
    if not is_first():
        time.sleep(MOMENT)


def several(count: int) -> int:
    """Run the command line that is running in so many processes instead.

    The first one's output is shown; that of the others, where one of them fails first.

    Args:
        count: Processes; 1 is none but this one.

    Returns:
        The exit code: of the first to fail.

    Raises:
        VictorError: If there are too few, or this is one of several already.
    """
    if count < 1:
        raise VictorError(f"{OPTION} {count}: at least one is needed", fix=f"use {OPTION} 1")
    if LAUNCHER in os.environ:
        raise VictorError(
            f"{OPTION} {count}: a launcher has started several processes already",
            fix=f"leave {OPTION} out, or the launcher",
        )
    shared = _environment(count)
    with ExitStack() as stack:
        workers = [_start(rank, shared, stack) for rank in range(count)]
        stack.callback(_end, workers)  # whatever happens here
        heard: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda number, _frame: heard.append(number))
            stack.callback(signal.signal, number, before)
        failed = _wait(workers, heard)
        if failed is None and heard:
            return 128 + heard[-1]
        return 0 if failed is None else _explain(failed, workers[failed], told=bool(heard))


def _environment(count: int) -> dict[str, str]:
    """Say to the processes of each other, as torchrun does."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count)),
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: "victorctl",
    }


def _start(rank: int, shared: dict[str, str], stack: ExitStack) -> Worker:
    """Start one process, which hears of signals from here alone, and ends when this one does."""
    words = [sys.executable, "-m", "victorctl", *_without(sys.argv[1:])]
    said = stack.enter_context(tempfile.TemporaryFile()) if rank else None  # noqa: SIM115
    process = subprocess.Popen(
        words,
        env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdout=subprocess.DEVNULL if rank else None,
        stderr=said,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    return Worker(process, said)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


def _without(words: Sequence[str]) -> list[str]:
    """Leave the option out that asks for several processes."""
    kept, skip = [], False
    for word in words:
        if not skip and word != OPTION and not word.startswith(f"{OPTION}="):
            kept.append(word)
        skip = word == OPTION and not skip
    return kept


def _tell(workers: Sequence[Worker], number: int) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(number)


def _wait(workers: Sequence[Worker], heard: Sequence[int]) -> int | None:
    """Wait for all, and name the first to fail: the others would wait for it in vain.

    Args:
        workers: Are told of the first signal.
        heard: Signals so far; at the second one nobody is waited for any more.
    """
    told = 0
    while len(heard) < 2:
        if len(heard) > told:
            _tell(workers, heard[told])
            told += 1
        codes = [worker.process.poll() for worker in workers]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(LOOK)
    return None


def _end(workers: Sequence[Worker]) -> None:
    """Let those that still run end by themselves, then end them."""
    deadline = time.monotonic() + PATIENCE
    _tell(workers, signal.SIGTERM)
    for worker in workers:
        try:
            worker.process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _explain(rank: int, worker: Worker, *, told: bool) -> int:
    """Show what the first process to fail has said, and return its exit code.

    Args:
        rank: The process's.
        worker: The process.
        told: It was told to end.
    """
    if worker.said is not None:
        worker.said.seek(0)
        sys.stderr.write(worker.said.read().decode(errors="replace"))
    code = worker.process.returncode
    if code < 0 and not told:
        sys.stderr.write(f"process {rank} was ended by {signal.Signals(-code).name}\n")
    return code if code > 0 else 128 - code
