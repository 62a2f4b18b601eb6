"""How alike two texts are: equal but for case and punctuation, or by edit distance."""

import functools
import string
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)
ANLS = {
    "anls": "lmms-eval's: lengths count spaces that are levelled before texts are compared, and "
    "half alike is enough",
    "anls_paper": "as defined: lengths are of what is compared, and half alike is too little",
}
"""What the two scores of likeness mean."""
CLOSE = 0.5  # as alike as two texts must be to count at all


def bare(text: str) -> str:
    """Leave out case and punctuation, as lmms-eval does before it compares two texts.

    It does so in arrays of NumPy, whose texts grow no longer where small letters are, and have no
    zeros at their end.

    Source: lmms-eval 0.7.3, api/metrics.py, lines 188-220.
    """
    return text.lower()[: len(text)].translate(PUNCTUATION).rstrip("\0")


def anls_marks(answer: str, right: Sequence[str]) -> dict[str, float]:
    """Mark an answer by both."""
    return {"right": anls(answer, right), "anls_paper": anls_paper(answer, right)}


def anls(answer: str, right: Sequence[str]) -> float:
    """Tell how alike an answer is to the nearest right one, as lmms-eval does.

    Spaces and case are levelled in what is compared, but not in the lengths that divide.

    Source: lmms-eval 0.7.3, api/metrics.py, lines 276-321.
    """
    score = 1 - min(
        _share(_level(answer), _level(one), max(len(answer.upper()), len(one.upper())))
        for one in right
    )
    return score if score >= CLOSE else 0.0


def anls_paper(answer: str, right: Sequence[str]) -> float:
    """Tell how alike an answer is to the nearest right one, as ANLS is defined.

    The lengths that divide are of what is compared, and half of it is too far.

    Source: Biten et al. 2019, arXiv 1905.13648 (average normalised Levenshtein similarity).
    """
    own = _level(answer)
    away = min(_share(own, one, max(len(own), len(one))) for one in map(_level, right))
    return 1 - away if away < CLOSE else 0.0


@functools.lru_cache(maxsize=1024)
def distance(one: str, other: str) -> int:
    """Count the letters to put in, take out or change to get from one text to another."""
    counts = [*range(len(other) + 1)]  # to its beginnings
    for place, letter in enumerate(one, start=1):
        above, counts = counts, [place]
        for number, wanted in enumerate(other, start=1):
            counts.append(
                min(counts[-1] + 1, above[number] + 1, above[number - 1] + (letter != wanted))
            )
    return counts[-1]


def _level(text: str) -> str:
    return " ".join(text.lower().split())


def _share(one: str, other: str, length: int) -> float:
    return distance(one, other) / length if length else 0.0
