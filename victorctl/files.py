"""Write a file whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
