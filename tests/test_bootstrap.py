"""Units drawn anew bound what was measured; where it can be known without drawing, exactly."""

import math
import time

import numpy as np
import pytest

from victorctl.bootstrap import RESAMPLES, bounds, resample


def alone(count):
    return range(count)


def kept_interval(model, base, *, groups, seed):
    """Bound the share of the base's score that a model keeps, with whole groups drawn."""
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    index = [places[group] for group in groups]
    sums = [np.bincount(index, weights=scores)[:, None] for scores in (model, base)]
    ours, theirs = (drawn[:, 0] for drawn in resample(sums, seed=seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        return bounds(ours / theirs)


def test_two_equal_models_keep_everything_for_certain():
    scores = np.random.default_rng(0).integers(0, 2, 50)  # unpaired draws would spread around 1

    assert kept_interval(scores, scores, groups=alone(50), seed=0) == (1.0, 1.0)


def test_the_interval_is_that_of_the_ratio_of_the_means():
    # The base is right on 1,600 of 2,000, the model on 1,440 of these: kept 0.9, and as the other
    # 400 count for neither, the deviation is that of 1,600 draws: sqrt(0.9 * 0.1 / 1,600) = 0.0075.
    # A mean of ratios would fail on 0 / 0, a difference of means would be about 0.08.
    base = [1] * 1600 + [0] * 400
    model = [1] * 1440 + [0] * 560

    low, high = kept_interval(model, base, groups=alone(2000), seed=1)

    half = 1.96 * math.sqrt(0.9 * 0.1 / 1600)
    assert low == pytest.approx(0.9 - half, abs=0.001)
    assert high == pytest.approx(0.9 + half, abs=0.001)


def test_a_picture_asked_four_times_counts_as_one_picture():
    base, model = [1] * 100, [1] * 80 + [0] * 20
    once = kept_interval(model, base, groups=alone(100), seed=2)

    four = kept_interval(model * 4, base * 4, groups=list(alone(100)) * 4, seed=2)

    assert four == once
    as_if_alone = kept_interval(model * 4, base * 4, groups=alone(400), seed=2)
    assert as_if_alone[1] - as_if_alone[0] == pytest.approx((once[1] - once[0]) / 2, rel=0.1)


def test_two_pictures_are_drawn_together_or_twice():
    # Draws: both the first (1 in 4), one each (1 in 2), both the second (1 in 4): kept 1, 1/2, 0.
    assert kept_interval([1, 0], [1, 1], groups=["a", "b"], seed=0) == (0.0, 1.0)


def test_draws_in_which_the_base_is_never_right_are_left_out():
    # A quarter of the draws take only the second picture; of the others all keep one half.
    assert kept_interval([0.5, 0], [1, 0], groups=["a", "b"], seed=0) == (0.5, 0.5)


def test_a_base_that_is_never_right_has_no_interval():
    assert kept_interval([1, 0], [0, 0], groups=["a", "b"], seed=0) is None


def test_the_seed_decides_the_draws():
    draw = np.random.default_rng(3)
    model, base = draw.random(60), draw.random(60)  # not 0 or 1, so that no two draws agree

    first, again, other = (
        kept_interval(model, base, groups=alone(60), seed=seed) for seed in (5, 5, 6)
    )

    assert first == again != other


def test_every_draw_takes_the_same_units_for_all_and_as_many_as_there_are():
    one = np.array([[1.0, 1], [10, 1], [100, 1]])  # digits tell how often each was drawn

    first, second, other = resample([one, 2 * one, one[:, 1:]], seed=0)

    assert first.shape == (RESAMPLES, 2)
    assert (second == 2 * first).all()
    assert (first[:, 1] == 3).all()
    assert (other[:, 0] == 3).all()
    assert {tuple(sorted(str(int(each)).zfill(3))) for each in first[:, 0]} == {
        tuple("003"), tuple("012"), tuple("111"),
    }  # fmt: skip


def test_others_than_as_many_units_are_refused():
    with pytest.raises(ValueError, match="units: 2, 3"):
        resample([np.ones((2, 1)), np.ones((3, 1))], seed=0)


def test_two_thousand_questions_take_less_than_a_second():
    scores = np.random.default_rng(0).random(2000)
    start = time.process_time()

    kept_interval(scores, scores, groups=alone(2000), seed=0)

    assert time.process_time() - start < 1
