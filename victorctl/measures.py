"""What an evaluation measures: answers and token counts, turned into numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from victorctl import cost
from victorctl.benchmarks.base import Asked, Number, Scorer
from victorctl.bootstrap import bounds, resample
from victorctl.exact import normalise

if TYPE_CHECKING:
    from victorctl.questions import Size

Pair = dict[str, Any]
"""A number of the model and one of the base, which is None where no base was run."""


def pair(model: Any, base: Any) -> Pair:
    """Put two numbers beside each other."""
    return {"model": model, "base": base}


def share(model: float | None, base: float | None) -> float | None:
    """Divide, where there is something to divide by."""
    return model / base if base and model is not None else None


class Sums(NamedTuple):
    """What is known of the units of a task, for one who answered.

    Args:
        names: Of the numbers.
        values: The numbers of each unit [u, f].
    """

    names: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Marked:
    """The answers of one contestant to a task, marked.

    Args:
        scorer: The rule.
        asked: The questions.
        marks: Of each answer, in the same order.
    """

    scorer: Scorer
    asked: Sequence[Asked]
    marks: Sequence[Mapping[str, float]]

    @classmethod
    def of(cls, scorer: Scorer, asked: Sequence[Asked], texts: Sequence[str]) -> "Marked":
        """Mark answers."""
        marks = [scorer.mark(text, one) for text, one in zip(texts, asked, strict=True)]
        return cls(scorer, asked, marks)

    def only(self, type_: str) -> "Marked":
        """Take the questions of one type."""
        places = [place for place, one in enumerate(self.asked) if one.type == type_]
        asked, marks = ([of[place] for place in places] for of in (self.asked, self.marks))
        return Marked(self.scorer, asked, marks)

    def right(self, place: int) -> bool:
        """Tell whether an answer is at least half right."""
        return self.marks[place]["right"] >= 0.5

    @cached_property
    def sums(self) -> Sums:
        """The marks of each unit, added up."""
        units: dict[Any, list[int]] = {}
        for place, one in enumerate(self.asked):
            units.setdefault(one.unit, []).append(place)
        each = [
            self.scorer.tally(
                [self.marks[place] for place in places], [self.asked[place] for place in places]
            )
            for places in units.values()
        ]
        names = tuple(dict.fromkeys(name for sums in each for name in sums))
        return Sums(names, np.array([[sums.get(name, 0.0) for name in names] for sums in each]))

    @cached_property
    def _whole(self) -> dict[str, float]:
        names, values = self.sums
        return dict(zip(names, values.sum(axis=0).tolist(), strict=True))

    @cached_property
    def scores(self) -> dict[str, float | None]:
        """All answers together, scored; None where there is nothing to divide by."""
        return {name: _known(value) for name, value in self.scorer.sum_up(self._whole).items()}

    @cached_property
    def share(self) -> float | None:
        """The main score as a share of what can be reached."""
        return _known(self.scorer.share(self._whole))


def _known(value: Number) -> float | None:
    return float(value) if np.isfinite(value) else None


def draw(marked: Sequence[Marked], seed: int | Sequence[int]) -> list[np.ndarray] | None:
    """Draw units anew, the same ones for everybody, and score each draw.

    Args:
        marked: Answers to the same questions.
        seed: Of the draws.

    Returns:
        For everybody, the main score as a share of what can be reached [draws]. None of one unit
        alone, which tells of no other.
    """
    sums = [one.sums for one in marked]
    if len(sums[0].values) < 2:
        return None
    drawn = resample([each.values for each in sums], seed=seed)
    scorer = marked[0].scorer
    return [
        np.asarray(scorer.share(dict(zip(each.names, values.T, strict=True))), float)
        for each, values in zip(sums, drawn, strict=True)
    ]


@dataclass(frozen=True)
class Comparison:
    """Somebody's answers to a task beside the base's.

    Args:
        model: The answers.
        base: The base's; None where there is none.
        draws: Shares of both with units drawn anew [draws], where there are any.
    """

    model: Marked
    base: Marked | None
    draws: tuple[np.ndarray, np.ndarray] | None = None

    def score(self) -> Pair:
        """Give the score that stands for all, in its own unit."""
        main = self.model.scorer.main
        return pair(self.model.scores[main], self.base and self.base.scores[main])

    def normalised(self) -> Pair:
        """Give the same as a share of what can be reached."""
        return pair(self.model.share, self.base and self.base.share)

    def metrics(self) -> dict[str, Pair]:
        """Give every score."""
        theirs = self.base.scores if self.base else {}
        return {name: pair(ours, theirs.get(name)) for name, ours in self.model.scores.items()}

    def kept(self) -> float | None:
        """Divide the model's score by the base's."""
        return share(**self.normalised())

    def row(self) -> dict[str, Any]:
        """Sum up in a line."""
        return {
            **self.normalised(),
            "questions": len(self.model.asked),
            "kept": self.kept(),
            "interval": interval(self.draws),
        }

    def of_type(self, type_: str, seed: int | Sequence[int]) -> dict[str, Any]:
        """Sum up the questions of one type alone, in a line."""
        ours, theirs = self.model.only(type_), self.base and self.base.only(type_)
        drawn = draw([ours, theirs], seed) if theirs else None
        return Comparison(ours, theirs, drawn and tuple(drawn)).row()


def interval(draws: tuple[np.ndarray, np.ndarray] | None) -> list[float] | None:
    """Bound the share of the base's score that is kept.

    Args:
        draws: Scores of both in every draw; those in which the base scores nothing are left out.
    """
    if draws is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found = bounds(draws[0] / draws[1])
    if found is None or found[0] == found[1]:  # all pictures alike: nothing is known of others
        return None
    return list(found)


def agreement(ours: Sequence[str], theirs: Sequence[str] | None) -> float | None:
    """Count how often two give the same answer, right or wrong."""
    if theirs is None:
        return None
    return fmean(normalise(a) == normalise(b) for a, b in zip(ours, theirs, strict=True))


class Load(NamedTuple):
    """The tokens of one prompt that go through a model.

    Args:
        visual: Visual tokens and registers that enter each layer.
        text: All other tokens.
    """

    visual: tuple[int, ...]
    text: int


def spend(shape: cost.Shape, loads: Sequence[Load]) -> dict[str, float]:
    """Average what prompts cost.

    Args:
        shape: Sizes of the model.
        loads: Of every prompt.

    Returns:
        `mean_visual_tokens`, `prefill_flops` and `cache_bytes`, without updates at registers.
    """
    counted = Counter(loads)
    each = [_spend(shape, load) for load in counted]
    weights = list(counted.values())
    return {key: fmean((spent[key] for spent in each), weights) for key in each[0]}


def _spend(shape: cost.Shape, load: Load) -> dict[str, float]:
    tokens = [entering + load.text for entering in load.visual]
    return {
        "mean_visual_tokens": fmean(load.visual),
        "prefill_flops": cost.prefill_flops(shape, tokens),
        "cache_bytes": cost.cache_bytes(shape, tokens),
    }


def entering(layers: int, drop_layer: int, size: "Size", registers: int) -> tuple[int, ...]:
    """Count the visual tokens and registers of a prompt that enter each layer.

    Args:
        layers: Of the language model.
        drop_layer: Layers that still see the visual tokens; all, of an unconverted model.
        size: Of the prompt.
        registers: Of each image.
    """
    more = registers * size.images
    return cost.tokens_per_layer(layers, drop_layer, visual=size.visual, registers=more, text=0)


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
