"""Scores of each kind of question, from sums that are kept by kind."""

from collections.abc import Callable, Mapping, Sequence

from victorctl.benchmarks.base import Asked, Number, ratio

Marks = Sequence[Mapping[str, float]]
BETWEEN = "/"


def tally_kinds(
    tally: Callable[[Marks, Sequence[Asked]], Mapping[str, float]],
    marks: Marks,
    asked: Sequence[Asked],
    kinds: Callable[[Asked], Sequence[str]],
) -> dict[str, float]:
    """Add up the marks of one unit, and once more for each kind of question in it.

    Args:
        tally: Adds up marks.
        marks: Of each question.
        asked: The questions.
        kinds: Names the kinds of a question.

    Returns:
        What `tally` gives for all questions, and, as "name/kind", for those of a kind.
    """
    sums = dict(tally(marks, asked))
    for kind in dict.fromkeys(kind for one in asked for kind in kinds(one)):
        pairs = zip(marks, asked, strict=True)
        those = [(mark, one) for mark, one in pairs if kind in kinds(one)]
        of_kind = tally([mark for mark, _ in those], [one for _, one in those])
        sums |= {name + BETWEEN + kind: value for name, value in of_kind.items()}
    return sums


def split_kinds(sums: Mapping[str, Number]) -> dict[str, dict[str, Number]]:
    """Take sums by kind apart.

    Args:
        sums: As `tally_kinds` names them.

    Returns:
        The sums of each kind, by the names that they have for all questions.
    """
    found: dict[str, dict[str, Number]] = {}
    for name, value in sums.items():
        name, between, kind = name.partition(BETWEEN)
        if between:
            found.setdefault(kind, {})[name] = value
    return found


def name_kind(score: str, kind: str) -> str:
    """Name the score of one kind of question."""
    return score + BETWEEN + kind


def kind_accuracies(sums: Mapping[str, Number]) -> dict[str, Number]:
    """Compute the accuracy of each kind of question, as "accuracy/kind"."""
    return {
        name_kind("accuracy", kind): ratio(those["right"], those["questions"])
        for kind, those in split_kinds(sums).items()
    }
