"""A run that is under way or was interrupted: its folder beside the output, held by one run."""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from victorctl.errors import VictorError
from victorctl.files import locked, write_whole
from victorctl.folders import explained


@dataclass(frozen=True)
class Unfinished(ABC):
    """A run in progress, in a folder beside its output.

    Args:
        folder: Where it lies; removed when the run is finished.
    """

    folder: Path

    again: ClassVar[str]
    """How the user starts again."""

    @property
    @abstractmethod
    def exists(self) -> bool:
        """Whether there is something to go on from."""

    @property
    def description(self) -> Path:
        """What must not change between a run and its continuation."""
        return self.folder / "run.json"

    @property
    def lock(self) -> Path:
        """Held while a run is under way; beside the folder, which comes and goes."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    def check_idle(self) -> None:
        """Refuse to disturb a run that is under way.

        Raises:
            VictorError: If there is one.
        """
        if self.lock.exists():
            with self._alone():
                pass

    @contextmanager
    def running(self, identity: dict[str, Any], *, resume: bool) -> Iterator[None]:
        """Hold the folder while the run is under way; where there is nothing in it, it is removed.

        Args:
            identity: What the run must share with the one that it continues.
            resume: Find the folder again, instead of making a new one.

        Raises:
            VictorError: If another run is under way, the run to resume was another one, or the
                folder cannot be made.
        """
        with self._alone():
            if resume:
                self._check_same(identity)
            else:
                with explained(self.folder):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self.folder.mkdir()
                    write_whole(self.description, json.dumps(identity, indent=2).encode())
            try:
                yield
            finally:
                if not self.exists:
                    self.finish()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs out."""
        with ExitStack() as stack:
            with explained(self.lock):
                self.lock.parent.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(self.lock))
            if not held:
                raise VictorError(
                    f"{self.folder}: another run is under way in this folder",
                    fix="wait for it to end, or choose another --out",
                )
            yield

    def _check_same(self, identity: dict[str, Any]) -> None:
        before = json.loads(self.description.read_text())
        changed = [key for key in identity if identity[key] != before.get(key)]
        if changed:
            said = "; ".join(f"{key} was {before.get(key)}, is {identity[key]}" for key in changed)
            raise VictorError(
                f"{self.folder}: another run lies here: {said}",
                fix=f"give the settings of that run, or {self.again}",
            )

    def finish(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
