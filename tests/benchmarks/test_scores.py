"""What holds for the scores of every benchmark."""

import fnmatch
import random

import numpy as np
import pytest

from tests.benchmarks.scoring import score, tally
from tests.benchmarks.storage import asked
from victorctl.benchmarks import BENCHMARKS, benchmark

ANSWERS = ["", "no", "A", "none of them", "2"]


def answered(name, share, seed=0):
    """Answer the example questions, so many of them right."""
    draw = random.Random(seed)
    return [
        (one, one.answers[0] if draw.random() < share else draw.choice(ANSWERS))
        for _, one in asked(name)
    ]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_the_data_call_right_is_right(name):
    found = benchmark(name)
    for one, answer in answered(name, 1.0):
        assert found.mark(answer, one)["right"] == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_draws_of_units_are_scored_at_once_as_each_alone(name):
    names, units = tally(benchmark(name), answered(name, 0.5))
    draws = np.random.default_rng(0).integers(3, size=(20, len(units)))  # [draws, units]

    together = score(benchmark(name), names, draws @ units)

    for place, often in enumerate(draws):
        alone = score(benchmark(name), names, often @ units)
        for metric, value in alone.items():
            values = np.broadcast_to(together[metric], len(draws))
            assert values[place] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_all_right_is_the_highest_score_and_all_wrong_a_lower_one(name):
    found = benchmark(name)
    best = score(found, *_sums(found, answered(name, 1.0)))
    worst = score(found, *_sums(found, [(one, "qwx") for one, _ in answered(name, 1.0)]))

    if name != "mme":  # its categories are added up, and not all of them are among the examples
        assert best[found.main] == pytest.approx(found.highest)
    assert 0 <= worst[found.main] < best[found.main]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_meanings_are_of_scores(name):
    found = benchmark(name)
    scores = score(found, *_sums(found, answered(name, 1.0)))

    assert found.main in scores
    for meant in found.meanings:
        assert fnmatch.filter(scores, meant.replace("...", "*")), meant


def _sums(found, those):
    names, units = tally(found, those)
    return names, units.sum(axis=0)
