"""How answers to any data are marked: right if they are, but for trifles, one of those accepted."""

from collections.abc import Sequence

from victorctl.benchmarks.base import Asked, Scorer

PUNCTUATION = ".,;:!?"


def normalise(answer: str) -> str:
    """Leave out what does not make an answer another one: case, spaces, punctuation at the end."""
    return " ".join(answer.lower().split()).rstrip(f"{PUNCTUATION} ")


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Tell whether an answer is, normalised, exactly one of those accepted."""
    return normalise(answer) in {normalise(one) for one in accepted}


class Exact(Scorer):
    """Marks an answer that is one of those accepted, but for case, spaces and final punctuation."""

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        return {"right": float(is_right(answer, asked.answers))}
