"""Write a file whole or not at all, or line by line so that a kill costs the last one."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a file to write, which becomes `path` at the end, or vanishes on any failure.

    Whoever reads the path finds the old file or the new one.

    Args:
        path: File that is wanted; its folder exists.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; see `whole`.

    Args:
        path: File to write; its folder exists.
        data: All of its bytes.
    """
    with whole(path) as partial:
        partial.write_bytes(data)


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Add values to a file of JSON lines; see `read_lines`.

    Args:
        path: File to write; its folder exists.
        values: That JSON can hold.
    """
    lines = "".join(f"\n{json.dumps(value)}" for value in values)  # ends a line that was cut short
    with path.open("a", encoding="utf-8") as out:
        out.write(lines)
        out.flush()
        os.fsync(out.fileno())


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines but those that a kill has cut short."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError):
            yield json.loads(line)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Yield whether this is the only holder of a lock, which the system frees if the process dies.

    The file is removed by whoever held the lock. Where there are no locks everybody holds it.

    Args:
        path: File that stands for the lock; its folder exists.
    """
    if fcntl is None:
        yield True
        return
    with path.open("ab") as file:
        held = _lock(file.fileno())
        try:
            yield held
        finally:
            if held:
                path.unlink(missing_ok=True)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Mark a folder as in use, until the end or until the process dies; see `abandoned`."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def abandoned(folder: Path) -> bool:
    """Say whether nobody holds a folder any more; no where that cannot be known."""
    if fcntl is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    finally:
        os.close(descriptor)
    return True


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return os.fstat(descriptor).st_nlink > 0  # else its holder removed it after we opened it
