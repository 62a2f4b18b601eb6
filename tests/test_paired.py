"""Faults planted and caught: the sign turned round; questions matched by place; units left out;
drawn without pairing; changes counted by letters; half right taken for wrong."""

import numpy as np
import pytest

from tests.reports import line, write
from victorctl.paired import Pairs
from victorctl.reports import open_report


def pairs(folder, first, second):
    return Pairs(*(open_report(write(folder / name, lines)).predictions
                   for name, lines in (("first", first), ("second", second))))  # fmt: skip


def test_changed_answers_are_counted_by_what_became_of_them(tmp_path):
    # Right answers: cat, dog, two, red. Questions 0 and 1 share a picture, 2 and 3 another.
    first = [line(n, model=text) for n, text in enumerate(["cat", "cat", "two", "red"])]
    second = [line(n, model=text) for n, text in enumerate(["cow", "dog", "Two.", "blue"])]

    (row,) = pairs(tmp_path, first, reversed(second)).differences("model")

    # cat -> cow and red -> blue were right, cat -> dog is; "Two." is the same answer, but was
    # marked wrong there. So 3 of 4 were right, and 1 is.
    assert (row["task"], row["of"], row["questions"], row["changed"]) == ("data", "model", 4, 3)
    assert (row["right_to_wrong"], row["wrong_to_right"]) == (3, 1)
    assert (row["first"], row["second"], row["difference"]) == (0.75, 0.25, -0.5)
    # Units: -1 + 1 = 0 of two, -1 - 1 = -2 of two. Drawn twice: 0, -1/2 (half of the draws), -1.
    assert row["interval"] == pytest.approx([-1, 0])
    assert (row["units"], row["noise"]) == (2, True)


def test_the_same_answers_differ_by_nothing(tmp_path):
    same = [line(n, model="cat") for n in range(4)]
    (row,) = pairs(tmp_path, same, same).differences("model")
    assert (row["changed"], row["difference"], row["interval"]) == (0, 0, [0, 0])


def test_a_difference_that_every_draw_shows_is_more_than_noise(tmp_path):
    wrong = [line(n, model="no") for n in range(4)]
    right = [line(n, model=text) for n, text in enumerate(["cat", "dog", "no", "red"])]
    (row,) = pairs(tmp_path, wrong, right).differences("model")
    # Units gain 2 and 1 of two questions each: 1/2 to 1 in any draw.
    assert (row["difference"], row["interval"], row["noise"]) == (0.75, [0.5, 1], False)


def test_the_interval_is_narrow_where_both_rise_and_fall_together(tmp_path):
    # 40 units of one question: right in every second unit in both, and one more in the second.
    # Unpaired draws would differ by about 0.3; paired ones by the one unit alone.
    def lines(marks):
        return [{**line(0, model="cat"), "id": f"{n}", "unit": n, "right": {"model": float(mark)}}
                for n, mark in enumerate(marks)]  # fmt: skip

    first = [n % 2 for n in range(40)]
    (row,) = pairs(tmp_path, lines(first), lines([1, *first[1:]])).differences("model")

    assert row["difference"] == pytest.approx(1 / 40)
    low, high = row["interval"]
    assert (low, high) == (0, pytest.approx(np.clip(3 / 40, 0.05, 0.1)))


def test_one_picture_tells_of_no_other(tmp_path):
    first, second = ([line(n, model=text) for n in (0, 1)] for text in ("cat", "dog"))
    (row,) = pairs(tmp_path, first, second).differences("model")
    assert (row["units"], row["interval"], row["noise"]) == (1, None, None)


def test_where_no_unit_is_known_questions_are_drawn(tmp_path):
    def without(model):
        lines = [line(n, model=model) for n in (0, 1)]
        return [{key: value for key, value in one.items() if key != "unit"} for one in lines]

    (row,) = pairs(tmp_path, without("cat"), without("dog")).differences("model")
    assert (row["units"], row["interval"]) == (None, [-1, 1])  # -1 and +1


def test_benchmarks_are_compared_each_by_itself(tmp_path):
    first = [line(0, model="cat", benchmark="pope"), line(0, model="no", benchmark="gqa")]
    second = [line(0, model="no", benchmark="pope"), line(0, model="cat", benchmark="gqa")]
    rows = pairs(tmp_path, first, second).differences("model")
    assert [(row["task"], row["difference"]) for row in rows] == [("pope", -1), ("gqa", 1)]


def test_what_is_half_right_is_right(tmp_path):
    def marked(mark):
        return [{**line(n, model="cat"), "right": {"model": mark}} for n in range(4)]

    (row,) = pairs(tmp_path, marked(0.3), marked(0.5)).differences("model")
    assert (row["wrong_to_right"], row["changed"]) == (4, 0)
    assert row["difference"] == pytest.approx(0.2)


def test_only_questions_of_both_are_compared(tmp_path):
    first = [line(n, model="cat") for n in (0, 1, 2)]
    second = [line(n, model="cat") for n in (2, 3, 0)]
    both = pairs(tmp_path, first, second)
    assert (both.shared, both.asked, both.same) == (2, (3, 3), False)
    assert both.differences("model")[0]["questions"] == 2

    other = [{**line(n, model="cat"), "question": "something else?"} for n in (0, 1, 2)]
    nothing = pairs(tmp_path / "other", first, other)
    assert (nothing.shared, nothing.same, nothing.differences("model")) == (0, False, [])


def test_who_answered_in_one_report_alone_is_not_compared(tmp_path):
    first = [{**line(0, model="cat"), "right": {"model": 1.0}}]
    assert pairs(tmp_path, first, [line(0, model="cat")]).differences("base") == []
