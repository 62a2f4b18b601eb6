"""What an evaluation measures: answers and token counts, turned into numbers."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from victorctl import cost
from victorctl.statistics import kept_interval

PUNCTUATION = ".,;:!?"

Pair = dict[str, Any]
"""A number of the model and one of the base, which is None where no base was run."""


def normalise(text: str) -> str:
    """Leave out what does not make an answer another one: case, spaces, punctuation at the end."""
    return " ".join(text.lower().split()).rstrip(f"{PUNCTUATION} ")


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Tell whether an answer is, normalised, exactly one of those accepted."""
    return normalise(answer) in {normalise(one) for one in accepted}


def pair(model: Any, base: Any) -> Pair:
    """Put two numbers beside each other."""
    return {"model": model, "base": base}


def share(model: float, base: float | None) -> float | None:
    """Divide, where there is something to divide by."""
    return model / base if base else None


@dataclass(frozen=True)
class Marks:
    """Which questions the model and the base answer right, in the same order."""

    model: tuple[bool, ...]
    base: tuple[bool, ...] | None
    same: tuple[bool, ...] | None
    """Whether both give the same answer, right or wrong."""


def mark(
    accepted: Sequence[Sequence[str]], model: Sequence[str], base: Sequence[str] | None
) -> Marks:
    """Compare answers with those accepted, and with each other.

    Args:
        accepted: Right answers to each question.
        model: What the model answered.
        base: What the base answered; None without one.
    """
    ours = tuple(map(is_right, model, accepted))
    if base is None:
        return Marks(ours, None, None)
    same = (normalise(a) == normalise(b) for a, b in zip(model, base, strict=True))
    return Marks(ours, tuple(map(is_right, base, accepted)), tuple(same))


def quality(
    marks: Marks, *, types: Sequence[str], pictures: Sequence[Hashable], seed: int
) -> dict[str, Any]:
    """Sum marks up.

    Args:
        marks: Of every question.
        types: Kind of each question.
        pictures: What each question is about; equal for questions about the same.
        seed: Of the bootstrap.

    Returns:
        `questions`, `accuracy`, `kept`, `interval`, `agreement` and `by_type` of `eval --json`.
    """
    accuracy = _accuracy(marks, range(len(types)))
    interval = None
    if marks.base is not None and len(set(pictures)) > 1:  # one picture tells of no other
        interval = kept_interval(marks.model, marks.base, groups=pictures, seed=seed)
    places: dict[str, list[int]] = {}
    for place, type_ in enumerate(types):
        places.setdefault(type_, []).append(place)
    return {
        "questions": len(types),
        "accuracy": accuracy,
        "kept": share(**accuracy),
        "interval": interval and list(interval),
        "agreement": None if marks.same is None else fmean(marks.same),
        "by_type": {
            type_: {**_accuracy(marks, of_type), "questions": len(of_type)}
            for type_, of_type in places.items()
        },
    }


def _accuracy(marks: Marks, places: Sequence[int]) -> Pair:
    base = None if marks.base is None else fmean(marks.base[place] for place in places)
    return pair(fmean(marks.model[place] for place in places), base)


class Load(NamedTuple):
    """The tokens of one prompt that go through a model.

    Args:
        early: Visual tokens and registers in the layers before `drop_layer`.
        late: Those in the layers from `drop_layer` on.
        text: All other tokens.
    """

    early: int
    late: int
    text: int


def spend(shape: cost.Shape, drop_layer: int, loads: Sequence[Load]) -> dict[str, float]:
    """Average what prompts cost.

    Args:
        shape: Sizes of the model.
        drop_layer: Where its early layers end.
        loads: Of every prompt.

    Returns:
        `mean_visual_tokens`, `prefill_flops` and `cache_bytes`, without updates at registers.
    """
    counted = Counter(loads)
    each = [_spend(shape, drop_layer, load) for load in counted]
    weights = list(counted.values())
    return {key: fmean((spent[key] for spent in each), weights) for key in each[0]}


def _spend(shape: cost.Shape, drop_layer: int, load: Load) -> dict[str, float]:
    visual = {"visual": load.early - load.late, "registers": load.late}
    tokens = cost.tokens_per_layer(shape.layers, drop_layer, **visual, text=load.text)
    return {
        "mean_visual_tokens": cost.mean_visual_tokens(shape.layers, drop_layer, **visual),
        "prefill_flops": cost.prefill_flops(shape, tokens),
        "cache_bytes": cost.cache_bytes(shape, tokens),
    }


def adapter_flops(shape: cost.Shape, victor: Mapping[str, Any], registers: float) -> float:
    """Count the FLOPs of the low-rank updates at so many registers.

    Args:
        shape: Sizes of the model.
        victor: The `victor` section of its configuration.
        registers: Of one prompt, or the mean of several: each costs the same.
    """
    adapter = victor.get("adapter")
    if not adapter:
        return 0
    layers = victor["drop_layer"] if adapter["layers"] == "early" else shape.layers
    return registers * cost.adapter_flops(shape, 1, rank=adapter["rank"], layers=layers)
