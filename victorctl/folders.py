"""Write a folder whole or not at all."""

import errno
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from victorctl.errors import VictorError
from victorctl.files import abandoned, holding
from victorctl.sources import BEGIN, END, LINEAGE, SMALL_FILES, read_json
from victorctl.units import size

REPORT = (
    *("report.json", "report.html", "predictions.jsonl"),
    *("tradeoff.png", "tradeoff.svg", "speedup.png", "speedup.svg"),
)
COMPARISON = ("compare.json", "pareto.png", "pareto.svg")
WRITTEN = (
    *SMALL_FILES, *REPORT, *(f"eval/{name}" for name in REPORT), *COMPARISON,
    *(f"compare/{name}" for name in COMPARISON), "compare.answers/*", "compare.answers.lock",
    LINEAGE, "*.safetensors",
    "*.safetensors.index*.json", "modeling_victor.py", "loss.png", "loss.jsonl", "eval.answers/*",
    "eval.answers.lock",
)  # fmt: skip
"""What stages write; any other file is somebody's own."""
SPARE = 64 << 20  # bytes that must stay free beside what is written


@contextmanager
def writing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `out` that becomes `out` at the end, or vanishes on any failure.

    What a killed process left there is removed first.

    Raises:
        VictorError: If `out` may not be written, or the disk is full.
    """
    check_output(out, overwrite=overwrite)
    out = out.expanduser().resolve()
    parents = [parent for parent in out.parents if not parent.exists()]  # the innermost first
    partial = _beside(out, "partial")
    try:
        with explained(out):
            remove_leftovers(out)
            partial.mkdir(parents=True)
            with holding(partial):
                yield partial
                check_output(out, overwrite=overwrite)
                _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def remove_leftovers(out: Path) -> None:
    """Remove what processes that were killed while they wrote this folder left beside it."""
    out = out.expanduser().resolve()
    for partial in out.parent.glob(f".{escape(out.name)}.????????.partial"):
        if abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.{kind}")


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename, and remove what stood there only after the new folder stands."""
    old = _beside(out, "old")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except BaseException:  # Ctrl-C too: what stood there comes back
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def explained(place: Path, *, instead: str = "choose another --out") -> Iterator[None]:
    """Let a full disk and a missing permission be errors that say what to do.

    Args:
        place: What is being written.
        instead: How to write to another place.

    Raises:
        VictorError: If the system refused to write; its other errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"{place}: the disk is full"
            raise VictorError(problem, fix=f"free some space, or {instead}") from error
        if error.errno == errno.EFBIG:
            problem = f"{place}: a file would be larger than this shell or disk allows"
            raise VictorError(problem, fix=f"ulimit -f unlimited, or {instead}") from error
        refused = error.errno in (errno.EACCES, errno.EROFS, errno.EPERM)
        if refused and error.filename is not None:
            problem = f"{error.filename}: {error.strerror}"
            raise VictorError(problem, fix=f"{instead}, where you may write") from error
        raise


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that would be lost.

    Raises:
        VictorError: If nothing may be written there, it is a file, or it is not empty and may not
            be overwritten, is not a folder that this package wrote, or holds something else too.
    """
    check_writable(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not _is_ours(out):
        raise VictorError(
            f"{out}: exists already, not written by victorctl, so --overwrite does not touch it",
            fix="choose another --out, or remove the folder yourself",
        )
    if not overwrite:
        raise VictorError(f"{out}: exists already", fix="add --overwrite, or choose another --out")
    if others := sorted(_others(out)):
        raise VictorError(
            f"{out}: holds more than victorctl wrote there: {', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}; --overwrite would remove it",
            fix="move that away, or choose another --out",
        )


def check_report(out: Path, file: str, what: str) -> None:
    """Let an earlier report be replaced, and nothing else.

    Args:
        out: Folder of the report.
        file: That each such folder holds.
        what: Such a folder holds, in words.

    Raises:
        VictorError: If something else is there, or nothing may be written.
    """
    earlier = (out / file).is_file() and not (out / "config.json").exists()
    if out.is_dir() and any(out.iterdir()) and not earlier:
        raise VictorError(f"{out}: holds something else than {what}", fix="choose another --out")
    check_output(out, overwrite=True)


def check_outside(out: Path, source: Path) -> None:
    """Refuse to write into a folder that is read.

    Raises:
        VictorError: If the output is the source, or lies in it.
    """
    if out.expanduser().resolve().is_relative_to(source.expanduser().resolve()):
        problem = f"--out {out} lies in {source}, which is read"
        raise VictorError(problem, fix="choose another --out")


def check_writable(out: Path) -> None:
    """Refuse a place where no folder can be made.

    Raises:
        VictorError: If a file is in the way, or a permission is missing.
    """
    if out.exists() and not out.is_dir():  # a device, too, which renaming would take away
        raise VictorError(f"{out}: a file stands there", fix="choose another --out")
    above = _nearest(out)
    if not above.is_dir():
        problem = f"{above}: a file, so no folder can be made in it"
        raise VictorError(problem, fix="choose another --out")
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:  # what permissions say is not all: file systems refuse, too
        problem = f"{out}: no file can be made in {above}: {error.strerror}"
        raise VictorError(problem, fix="choose another --out, where you may write") from error


def _is_ours(out: Path) -> bool:
    """Recognise a Victor model, or a report."""
    victor = "victor" in (read_json(out / "config.json") or {})
    return victor or any((out / name).is_file() for name in (LINEAGE, REPORT[0], COMPARISON[0]))


def _others(out: Path) -> Iterator[str]:
    """Name what lies in a folder and is not written by any stage."""
    for path in out.iterdir():
        inside = [f"{path.name}/{inner.name}" for inner in path.iterdir()] if path.is_dir() else []
        ours = _written(path.name) or _is_page(path) or (inside and all(map(_written, inside)))
        if not (ours or (path.is_dir() and not inside)):
            yield path.name


def _written(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WRITTEN)


def _is_page(path: Path) -> bool:
    """Say whether a file is a page that was published, with no word of the user's own."""
    if path.name != "README.md" or not path.is_file():
        return False
    body = path.read_text(encoding="utf-8", errors="replace").partition("\n---\n")[2].strip()
    return body.startswith(BEGIN) and body.endswith(END)


def check_space(out: Path, needed: int, *, instead: str = "") -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        out: Folder to be written.
        needed: Bytes to be written.
        instead: Another way to need less, such as ", or use --link".

    Raises:
        VictorError: If less is free.
    """
    free = shutil.disk_usage(_nearest(out)).free
    if free < needed + SPARE:
        raise VictorError(
            f"{out}: needs {size(needed)} and {size(SPARE)} to spare, and its disk has "
            f"{size(free)} free",
            fix=f"free some space, or choose an --out on another disk{instead}",
        )


def on_one_disk(out: Path, files: Iterable[Path]) -> bool:
    """Say whether a folder that is to be written can hold hard links to the files."""
    disk = _nearest(out).stat().st_dev
    return all(file.stat().st_dev == disk for file in files)


def _nearest(out: Path) -> Path:
    """Find the nearest thing above a place that exists."""
    return next(parent for parent in out.expanduser().resolve().parents if parent.exists())
