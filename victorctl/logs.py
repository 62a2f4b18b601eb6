"""Where the numbers of a running training are told: a file, TensorBoard, trackio, or nowhere."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from victorctl.errors import VictorError

Entry = Mapping[str, float]
"""What a step says: its number, its losses and its learning rate."""

Tell = Callable[[Entry], None]


@dataclass(frozen=True)
class Told:
    """A run whose numbers are told.

    Args:
        out: Folder that it will write; its log lies beside.
        before: What was told before the run was interrupted.
        settings: Of the recipe.
    """

    out: Path
    before: Sequence[Entry]
    settings: Mapping[str, Any]


def telling(kind: str, told: Told) -> AbstractContextManager[Tell]:
    """Open a log.

    Args:
        kind: One of KINDS.
        told: Of what.

    Returns:
        A context that gives what is to be called with every step's entry.
    """
    return KINDS[kind](told)


def check(kind: str, out: Path, *, replace: bool) -> None:
    """Refuse a log that there is not, whose package is not installed, or that something lies in.

    Args:
        kind: One of KINDS, or another word.
        out: Folder of the run.
        replace: Whether a log that is there may be replaced, or gone on with.

    Raises:
        VictorError: If so.
    """
    if kind not in KINDS:
        raise VictorError(f"--log {kind}: no such log", fix=f"use {', '.join(KINDS)}")
    place = _place(kind, out)
    if place.exists() and not replace:
        raise VictorError(f"{place} exists", fix="move it away, or add --overwrite")
    try:
        if kind == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        elif kind == "trackio":
            import trackio  # noqa: F401
    except ImportError as error:
        raise VictorError(
            f"--log {kind}: {error}", fix=f"pip install {kind}, or use --log jsonl"
        ) from error


def _place(kind: str, out: Path) -> Path:
    """Name the file or folder beside a run's output that a log of this kind is written to."""
    return out.with_name(f"{out.name}.log.{kind}")


@contextmanager
def _none(_told: Told) -> Iterator[Tell]:
    yield lambda _entry: None


@contextmanager
def _jsonl(told: Told) -> Iterator[Tell]:
    """Write a line for each step, at once; a resumed run's file begins with what was before."""
    told.out.parent.mkdir(parents=True, exist_ok=True)
    with _place("jsonl", told.out).open("w", encoding="utf-8") as file:

        def tell(entry: Entry) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        for entry in told.before:
            tell(entry)
        yield tell


@contextmanager
def _tensorboard(told: Told) -> Iterator[Tell]:
    """Write TensorBoard's event files; steps after the last checkpoint are told anew."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(_place("tensorboard", told.out), purge_step=len(told.before) + 1) as writer:
        writer.add_text("settings", json.dumps(told.settings, default=str))

        def tell(entry: Entry) -> None:
            for name, value in entry.items():
                if name != "step":
                    writer.add_scalar(name, value, global_step=int(entry["step"]))

        yield tell


@contextmanager
def _trackio(told: Told) -> Iterator[Tell]:
    """Write to trackio, project victorctl; a resumed run goes on under its name."""
    import trackio

    with redirect_stdout(sys.stderr):  # which is where it speaks to people
        run = trackio.init(
            project="victorctl",
            name=told.out.name,
            config=dict(told.settings),
            resume="allow" if told.before else "never",
        )

        def tell(entry: Entry) -> None:
            numbers = {name: value for name, value in entry.items() if name != "step"}
            run.log(numbers, entry["step"])

        try:
            yield tell
        finally:
            run.finish()


KINDS = {"none": _none, "jsonl": _jsonl, "tensorboard": _tensorboard, "trackio": _trackio}
