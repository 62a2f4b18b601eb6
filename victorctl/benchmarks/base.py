"""What a benchmark is: where its questions are, how they are put, and how answers are marked."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from victorctl.data.rows import Picture

IMAGE = {"type": "image"}
"""A picture's place among the parts of what is asked."""

Number = float | np.ndarray
"""One number, or one for each draw of a bootstrap [draws]."""


class Hub(NamedTuple):
    """Where a benchmark's data are on the Hub."""

    repo: str
    config: str | None
    split: str


class Beside(NamedTuple):
    """Pictures that are stored apart from the questions about them.

    Args:
        data: Where they are.
        key: Column of the questions that names a picture.
        id: Column of the pictures with their names.
        image: Column of the pictures themselves, which the questions get, too.
    """

    data: Hub
    key: str
    id: str
    image: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as its benchmark puts it.

    Args:
        id: Its name in the benchmark; no other question has it. "" where the benchmark gives none:
            whoever opens it takes the number of the row.
        parts: Of the user's turn, in their order: `IMAGE`, or {"type": "text", "text": ...}.
        images: The pictures, closed, one for each `IMAGE`.
        answers: What is right, as a person would write it.
        unit: Equal for questions that are marked together, or are about the same picture: a draw of
            the bootstrap takes all of them or none. None where the data do not tell which pictures
            are the same: whoever opens them looks.
        type: Kind of question, as the benchmark calls it; "all" where it has none.
        known: Whatever else its scorer must know.
    """

    id: str
    parts: tuple[Mapping[str, str], ...]
    images: tuple[Picture, ...]
    answers: tuple[str, ...]
    unit: Hashable
    type: str
    known: Mapping[str, Any]


class Scorer(ABC):
    """A rule for marking answers.

    An answer is marked by itself (`mark`), the marks of a unit are added up (`tally`), and the sums
    over all units become scores (`sum_up`): so the bootstrap can draw units anew and again, by
    nothing but sums.
    """

    main: ClassVar[str] = "accuracy"
    """The score that stands for all."""
    highest: ClassVar[float] = 1.0
    """Value of `main` where all is right."""
    meanings: ClassVar[Mapping[str, str]] = {}
    """What scores mean that their names do not say; of two definitions, whose each is. A name that
    ends in "/..." is that of the scores of all kinds of questions."""

    @abstractmethod
    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """Mark one answer.

        Args:
            answer: What a model wrote, without spaces around it.
            asked: The question.

        Returns:
            `right`, from 0 to 1, and whatever else `tally` needs.
        """

    def tally(
        self, marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
    ) -> dict[str, float]:
        """Add up the marks of the questions of one unit.

        Args:
            marks: Of each question.
            asked: The questions.

        Returns:
            What `sum_up` reads the sums of; a name that is left out is 0.
        """
        names = dict.fromkeys(name for each in marks for name in each)
        sums = {name: sum(each.get(name, 0.0) for each in marks) for name in names}
        return {"questions": float(len(asked)), **sums}

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """Turn sums over units into scores.

        Args:
            sums: By name: one number each, or arrays [draws] alike.

        Returns:
            `main`, and whatever else is reported, all in the shape of the sums; NaN where there is
            nothing to divide by.
        """
        return {self.main: ratio(sums["right"], sums["questions"])}

    def share(self, sums: Mapping[str, Number]) -> Number:
        """Give `main` as a share of what could be reached with the questions that were asked.

        Args:
            sums: As for `sum_up`.

        Returns:
            In the shape of the sums, from 0 to 1; NaN where there is nothing to divide by.
        """
        return self.sum_up(sums)[self.main] / self.highest


class Benchmark(Scorer):
    """Questions about pictures that others ask, too, put and marked as they do."""

    title: ClassVar[str]
    """As papers write it."""
    data: ClassVar[Hub]
    columns: ClassVar[Mapping[str, str]]
    """Columns of the data that are read, and their meaning; they must be there."""
    optional: ClassVar[Mapping[str, str]] = {}
    """Those that may be missing, and what they are good for."""
    shown: ClassVar[tuple[str, ...]] = ("image",)
    """Which of all these hold pictures."""
    beside: ClassVar[Beside | None] = None
    """Where the pictures are, if not in the rows of the questions."""
    longest: ClassVar[int] = 16
    """Tokens of the longest answer that is let be written."""
    whole_units: ClassVar[bool] = False
    """Whether a unit of which only some questions are asked is marked otherwise than the whole."""

    @abstractmethod
    def ask(self, row: Mapping[str, Any]) -> Asked | None:
        """Put the question of a row of the data.

        Args:
            row: Its columns: each of `columns`, None where it is empty; the others where the data
                have them. Those of `shown` are tuples of closed pictures.

        Returns:
            None where the row is none of the benchmark's questions.

        Raises:
            BadRow: If a column holds what cannot be used.
        """


def ratio(part: Number, whole: Number) -> Number:
    """Divide; NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


def undefined(sums: Mapping[str, Number]) -> Number:
    """Give NaN in the shape of the sums."""
    return ratio(0 * next(iter(sums.values())), 0)


def means(sums: Mapping[str, Number], main: str) -> dict[str, Number]:
    """Average marks over questions: `right` is called `main`, others keep their names."""
    marks = {main: sums["right"]} | {
        name: each for name, each in sums.items() if name not in ("right", "questions")
    }
    return {name: ratio(each, sums["questions"]) for name, each in marks.items()}


def text(words: str) -> dict[str, str]:
    """Make a part that is text."""
    return {"type": "text", "text": words}
