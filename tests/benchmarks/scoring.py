"""Scores of answers, by what a benchmark says of them and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from victorctl.benchmarks.base import Asked, Benchmark

Answered = Sequence[tuple[Mapping[str, Any], str]]
"""Rows of the data, and what was answered."""


def scores(benchmark: Benchmark, answered: Answered) -> dict[str, float]:
    """Score answers."""
    names, units = unit_sums(benchmark, answered)
    found = benchmark.sum_up(dict(zip(names, units.sum(axis=0), strict=True)))
    return {name: float(score) for name, score in found.items()}


def unit_sums(benchmark: Benchmark, answered: Answered) -> tuple[list[str], np.ndarray]:
    """Tally each unit: names of the sums, and their values [units, sums]."""
    units: dict[Any, list[tuple[dict[str, float], Asked]]] = {}
    for number, (row, answer) in enumerate(answered):
        asked = benchmark.ask(row)
        if asked is not None:
            unit = number if asked.unit is None else asked.unit
            units.setdefault(unit, []).append((benchmark.mark(answer, asked), asked))
    tallies = [benchmark.tally(*zip(*those, strict=True)) for those in units.values()]
    names = list(dict.fromkeys(name for tally in tallies for name in tally))
    return names, np.array([[tally.get(name, 0.0) for name in names] for tally in tallies])


def right(benchmark: Benchmark, row: Mapping[str, Any], answer: str) -> float:
    """Mark one answer to the question of a row."""
    return benchmark.mark(answer, benchmark.ask(row))["right"]
