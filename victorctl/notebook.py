"""Answers as they come, on disk: an interrupted evaluation goes on from them, in any process."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from victorctl.errors import VictorError
from victorctl.files import append_lines, read_lines
from victorctl.folders import explained
from victorctl.questions import Size
from victorctl.recipe import Run
from victorctl.runtime import say
from victorctl.unfinished import Unfinished


class Entry(NamedTuple):
    """What came of one question.

    Args:
        number: Its place among all of its task.
        size: Of its prompt.
        texts: What each contestant answered, by its name.
        divergence: Of the model's first token from the base's, in nats; None without a base.
        cached: Whether the base's answer was known before.
        entered: Visual tokens that entered each layer, of each contestant that tells; None where
            nobody was asked to.
    """

    number: int
    size: Size
    texts: dict[str, str]
    divergence: float | None = None
    cached: bool = False
    entered: dict[str, list[int]] | None = None


@dataclass(frozen=True)
class Notebook(Unfinished):
    """The answers of an evaluation in progress: a file for each task and process.

    Args:
        process: Number of the one that writes here.
    """

    again: ClassVar[str] = "leave --resume out, which starts again"
    process: int = 0

    @property
    def exists(self) -> bool:
        """Whether a question was answered."""
        return any(self.folder.glob("*.jsonl"))

    def check(self, run: Run, report: Path) -> bool:
        """Refuse what cannot be continued; changes nothing.

        Args:
            run: Says whether an interrupted evaluation is to be continued.
            report: Where a finished one leaves its report.

        Returns:
            Whether there is one to be continued.

        Raises:
            VictorError: If another evaluation is under way here, the one to resume is finished, or
                the folder is not one of an evaluation.
        """
        self.check_idle()
        there = self.exists and self.description.exists()
        if run.resume and not there and report.exists():
            problem = f"{report}: nothing to resume, the evaluation is finished"
            raise VictorError(problem, fix="leave --resume out to ask everything again")
        if run.resume and not there:
            say("nothing was answered yet: starting", quiet=run.quiet)
        if self.exists and not run.resume:
            lost = "starting again: an interrupted evaluation was here, which --resume goes on with"
            say(lost, quiet=run.quiet)
        if self.folder.exists() and not self.description.exists():
            raise VictorError(
                f"{self.folder}: answers belong here, and this was not written by victorctl",
                fix="move it away, or choose another --out",
            )
        return run.resume and there

    def add(self, task: str, entries: Sequence[Entry]) -> None:
        """Write down a batch.

        Args:
            task: Name of what the questions belong to.
            entries: Of all questions of the batch.

        Raises:
            VictorError: If the disk is full.
        """
        file = self.folder / f"{task}.{self.process}.jsonl"
        with explained(file):
            append_lines(file, entries)

    def read(self, task: str) -> dict[int, Entry]:
        """Find what all processes wrote down, by number of the question."""
        files = sorted(self.folder.glob(f"{task}.*.jsonl"))
        lines = itertools.chain.from_iterable(map(read_lines, files))
        return {number: Entry(number, Size(*size), *rest) for number, size, *rest in lines}
