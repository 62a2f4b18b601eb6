"""Scores of answers, by what a benchmark says of them and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from victorctl.benchmarks.base import Asked, Benchmark, Number

Answered = Sequence[tuple[Mapping[str, Any], str]]
"""Rows of the data, and what was answered."""


def scores(benchmark: Benchmark, answered: Answered) -> dict[str, float]:
    """Score answers to those rows that are questions."""
    asked = [(benchmark.ask(row), answer) for row, answer in answered]
    names, units = tally(benchmark, [(one, answer) for one, answer in asked if one is not None])
    found = score(benchmark, names, units.sum(axis=0))
    return {name: float(value) for name, value in found.items()}


def tally(
    benchmark: Benchmark, answered: Sequence[tuple[Asked, str]]
) -> tuple[list[str], np.ndarray]:
    """Tally each unit: names of the sums, and their values [units, sums]."""
    units: dict[Any, list[tuple[Mapping[str, float], Asked]]] = {}
    for number, (one, answer) in enumerate(answered):
        unit = number if one.unit is None else one.unit
        units.setdefault(unit, []).append((benchmark.mark(answer, one), one))
    tallies = [benchmark.tally(*zip(*those, strict=True)) for those in units.values()]
    names = list(dict.fromkeys(name for each in tallies for name in each))
    return names, np.array([[each.get(name, 0.0) for name in names] for each in tallies])


def score(benchmark: Benchmark, names: Sequence[str], sums: np.ndarray) -> dict[str, Number]:
    """Turn sums [..., sums] into scores."""
    return benchmark.sum_up(dict(zip(names, sums.T, strict=True)))


def right(benchmark: Benchmark, row: Mapping[str, Any], answer: str) -> float:
    """Mark one answer to the question of a row."""
    return benchmark.mark(answer, benchmark.ask(row))["right"]
