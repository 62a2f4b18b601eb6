"""What an interrupted training run leaves on disk and goes on from, and Ctrl-C."""

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from victorctl import weights
from victorctl.errors import VictorError
from victorctl.files import whole, write_whole
from victorctl.folders import explained
from victorctl.processes import put, whole_tensor
from victorctl.unfinished import Unfinished

ADAM = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class State(Unfinished):
    """A training run in progress; it holds only what is trained."""

    again: ClassVar[str] = "leave --resume out and add --overwrite"

    @property
    def file(self) -> Path:
        """The latest checkpoint."""
        return self.folder / "state.safetensors"

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint."""
        return self.file.exists()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse what cannot be continued, and what would be lost; changes nothing.

        Raises:
            VictorError: If another run is under way, there is nothing to resume or it is damaged,
                an interrupted run would be lost without `overwrite`, or the folder is not one of a
                run.
        """
        self.check_idle()
        if resume:
            if not (self.file.exists() and self.description.exists()):
                problem = f"{self.folder}: no checkpoint to resume"
                raise VictorError(problem, fix="leave --resume out")
            self._check_whole()
        elif self.file.exists() and not overwrite:
            raise VictorError(
                f"{self.folder}: holds an interrupted run",
                fix="add --resume to continue it, or --overwrite to start again",
            )
        elif self.folder.exists() and not self.description.exists():
            raise VictorError(
                f"{self.folder}: checkpoints belong here, and this was not written by victorctl",
                fix="move it away, or choose another --out",
            )

    def _check_whole(self) -> None:
        try:
            json.loads(self.description.read_text())
            with safe_open(self.file, "pt"):
                pass
        except (SafetensorError, ValueError) as error:
            raise VictorError(
                f"{self.folder}: damaged, perhaps by a power cut: {error}",
                fix="leave --resume out and add --overwrite, which starts again",
            ) from error

    def save(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        log: Sequence[Mapping[str, float]],
        *,
        write: bool = True,
    ) -> None:
        """Write a checkpoint after len(log) steps; it replaces the one before once it is whole.

        Args:
            parameters: What is trained, by name; each process may hold a part of each.
            optimizer: Of them.
            log: A line for each step.
            write: Whether this is the process that writes; all must call this.

        Raises:
            VictorError: If the disk is full; the checkpoint before stays.
        """
        own = {f"parameter.{name}": value.detach() for name, value in parameters.items()}
        for name, value in parameters.items():
            for moment in ADAM:
                own[f"{moment}.{name}"] = optimizer.state[value][moment]
        tensors = {}
        for name, value in own.items():  # one by one, as parts of large ones lie on many GPUs
            whole_one = whole_tensor(value)
            if write:
                tensors[name] = whole_one.cpu() if whole_one is not value else value
        if not write:
            return
        lines = "".join(json.dumps(entry) + "\n" for entry in log)
        instead = "start again with another --out"
        with explained(self.file, instead=instead), whole(self.file) as partial:
            weights.write_file(partial, tensors, {"log": lines})

    def restore(
        self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> list[dict[str, float]]:
        """Read the checkpoint back into the parameters and the optimizer, and return the log."""
        with safe_open(self.file, "pt") as tensors:
            log = [json.loads(line) for line in tensors.metadata()["log"].splitlines()]
            for name, value in parameters.items():
                value.data.copy_(put(value, tensors.get_tensor(f"parameter.{name}")))
                if optimizer is not None:
                    optimizer.state[value] = {
                        moment: put(value, tensors.get_tensor(f"{moment}.{name}"))
                        for moment in ADAM
                    } | {"step": torch.tensor(float(len(log)), device=value.device)}
        return log

    def has_asked(self, place: str) -> bool:
        """Tell whether the teacher has answered everything, to be found at that place."""
        return self._asked.exists() and self._asked.read_text() == place

    def note_asked(self, place: str) -> None:
        """Note that the teacher has answered everything, to be found at that place."""
        write_whole(self._asked, place.encode())

    @property
    def _asked(self) -> Path:
        return self.folder / "asked"


class Interrupt:
    """Whether the run is to stop, and by which signal."""

    number: int | None = None

    @property
    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed, or the process was told to end."""
        return self.number is not None

    def leave(self) -> NoReturn:
        """End as the signal would have ended it."""
        if self.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def finish_the_step(*, patient: bool = False) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after the step; a second stops at once.

    Args:
        patient: The second does nothing: launchers of several processes send it by themselves.
    """
    wish = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(number: int, frame: object) -> None:
        wish.number = number
        if not patient:
            back()

    def back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        back()
