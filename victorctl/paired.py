"""Two reports' answers to the same questions: what changed, and how sure the difference is."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from victorctl.bootstrap import bounds, resample
from victorctl.exact import normalise
from victorctl.reports import Prediction

RIGHT = 0.5  # an answer that is at least half right counts as right
SEED = 0  # of the draws: the same two reports always give the same interval


class Pairs:
    """Questions that two reports share, with the answers of both.

    Args:
        first: Predictions of one report.
        second: Of the other.
    """

    def __init__(self, first: Sequence[Prediction], second: Sequence[Prediction]) -> None:
        others = {one.key: one for one in second}
        self.pairs = [(one, others[one.key]) for one in first if one.key in others]
        self.asked = len(first), len(second)

    @property
    def shared(self) -> int:
        """How many questions are in both."""
        return len(self.pairs)

    @property
    def same(self) -> bool:
        """Whether there are no others."""
        return self.asked == (self.shared, self.shared)

    def differences(self, who: str) -> list[dict[str, Any]]:
        """Compare the answers of one, the model or the base, in both reports, task by task.

        Returns:
            `task`, `of`, `questions`, how many answers `changed`, `right_to_wrong` and
            `wrong_to_right`, how right they are on average in the `first` and the `second`, the
            `difference`, its 95 % `interval`, whether that is `noise` alone, and the `units` that
            were drawn for it. An interval is None of a single unit; units are None where nothing
            tells them, and questions are drawn.
        """
        tasks: dict[str, list[tuple[Prediction, Prediction]]] = {}
        for one, other in self.pairs:
            if who in one.right and who in other.right:
                tasks.setdefault(one.task, []).append((one, other))
        return [{"task": task, "of": who, **_compare(own, who)} for task, own in tasks.items()]


def _compare(pairs: Sequence[tuple[Prediction, Prediction]], who: str) -> dict[str, Any]:
    marks = np.array([[one.right[who], other.right[who]] for one, other in pairs])  # [q, 2]
    right = marks >= RIGHT
    means = marks.mean(axis=0)
    units = _units(pairs)
    interval = _interval(units, marks)
    return {
        "questions": len(pairs),
        "changed": sum(
            normalise(one.texts.get(who, "")) != normalise(other.texts.get(who, ""))
            for one, other in pairs
        ),
        "right_to_wrong": int((right[:, 0] & ~right[:, 1]).sum()),
        "wrong_to_right": int((~right[:, 0] & right[:, 1]).sum()),
        "first": float(means[0]),
        "second": float(means[1]),
        "difference": float(means[1] - means[0]),
        "interval": interval,
        "noise": None if interval is None else interval[0] <= 0 <= interval[1],
        "units": len(set(units)) if pairs[0][0].unit is not None else None,
    }


def _units(pairs: Sequence[tuple[Prediction, Prediction]]) -> list[int]:
    """Number the units of questions; one that names none is a unit by itself."""
    numbers: dict[Any, int] = {}
    return [
        numbers.setdefault(
            (one.unit is None, place if one.unit is None else one.unit), len(numbers)
        )
        for place, (one, _) in enumerate(pairs)
    ]


def _interval(units: Sequence[int], marks: np.ndarray) -> list[float] | None:
    """Bound the difference with 95 % confidence: units are drawn anew, the same ones for both.

    Args:
        units: Of each question.
        marks: Of each question in both reports [q, 2].
    """
    sizes = np.bincount(units)
    if len(sizes) < 2:
        return None
    gained = np.bincount(units, weights=marks[:, 1] - marks[:, 0])
    (drawn,) = resample([np.stack([gained, sizes], axis=1)], seed=SEED)  # [draws, 2]
    found = bounds(drawn[:, 0] / drawn[:, 1])
    return found and list(found)
