"""What holds for every benchmark of the table."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import storage
from victorctl.benchmarks import BENCHMARKS, benchmark
from victorctl.benchmarks.base import Benchmark

FOLDER = Path(__file__).parents[2] / "victorctl" / "benchmarks"


def tallied(name, answers):
    """Mark the example rows, each with an answer, and tally their units."""
    found = benchmark(name)
    units = {}
    for number, ((_, one), answer) in enumerate(zip(storage.asked(name), answers, strict=True)):
        units.setdefault(one.unit or number, []).append((found.mark(answer, one), one))
    return [found.tally(*zip(*unit, strict=True)) for unit in units.values()]


def test_each_benchmark_is_one_class_in_one_file_and_one_line_of_the_table():
    files = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")
    modules = [import_module(f"victorctl.benchmarks.{name}") for name in files]
    found = [
        f"{name}:{cls}" for name, module in zip(files, modules, strict=True) for cls in own(module)
    ]

    assert sorted(BENCHMARKS.values()) == found
    assert len(found) >= 7
    assert len({place.partition(":")[0] for place in found}) == len(found)


def own(module):
    """Name the benchmarks of a file."""
    classes = [
        one for one in vars(module).values() if inspect.isclass(one) and one is not Benchmark
    ]
    here = [
        one for one in classes if issubclass(one, Benchmark) and one.__module__ == module.__name__
    ]
    return [one.__name__ for one in here]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_what_it_is(name):
    found = benchmark(name)

    assert isinstance(found, Benchmark)
    assert re.search(r"Source: .+lmms-eval 0\.7\.3", type(found).__doc__, re.DOTALL)
    assert found.title
    assert found.columns
    assert all(found.columns.values())
    assert all(found.optional.values())
    assert not found.columns.keys() & found.optional.keys()
    assert {*found.shown} <= {*found.columns, *found.optional}
    assert found.longest >= 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_are_right_and_every_score_is_explained(name):
    wanted = [one.answers[0] for _, one in storage.asked(name)]
    found = benchmark(name)
    tallies = tallied(name, wanted)
    scores = found.sum_up(add(tallies))

    assert scores[found.main] == pytest.approx(found.highest)
    assert found.share(add(tallies)) == pytest.approx(1)
    names = {re.sub("/.*", "/...", score) for score in scores}  # those of all kinds alike
    assert {*found.meanings} <= names
    assert names - {found.main} <= {*found.meanings}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_sums_of_draws_give_the_scores_of_each_draw(name):
    found = benchmark(name)
    wanted = [one.answers[0] if n % 2 else "?" for n, (_, one) in enumerate(storage.asked(name))]
    tallies = tallied(name, wanted)
    draws = [tallies, tallies[:1], tallies[:1] * 3, []]
    names = dict.fromkeys(key for tally in tallies for key in tally)
    arrays = {key: np.array([add(draw, names)[key] for draw in draws]) for key in names}

    together = found.sum_up(arrays)
    alone = [found.sum_up(add(draw, names)) for draw in draws]
    for score in alone[0]:
        np.testing.assert_allclose(together[score], [each[score] for each in alone])
    shares = [found.share(add(draw, names)) for draw in draws]
    np.testing.assert_allclose(found.share(arrays), shares)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nothing_to_divide_by_gives_no_score(name):
    found = benchmark(name)
    (names, *_) = tallied(name, ["?"] * len(storage.rows(name)))
    nothing = found.sum_up(dict.fromkeys(names, 0.0))

    assert np.isnan(nothing[found.main])
    assert np.isnan(found.share(dict.fromkeys(names, 0.0)))


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_score_has_the_shape_of_the_sums_whatever_was_asked(name, shape):
    found = benchmark(name)
    wanted = [one.answers[0] for _, one in storage.asked(name)]
    for tally in tallied(name, wanted):  # of one unit alone: of one category, or of one half
        sums = {key: np.full(shape, value) for key, value in tally.items()}
        scores = found.sum_up(sums)

        assert {key for key, score in scores.items() if np.shape(score) != shape} == set()
        assert np.shape(found.share(sums)) == shape


def add(tallies, names=()):
    known = dict.fromkeys([*names, *(key for tally in tallies for key in tally)])
    return {key: sum(tally.get(key, 0.0) for tally in tallies) for key in known}
