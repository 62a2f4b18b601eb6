"""Answers to any data are marked as a patient reader would."""

import pytest

from victorctl.exact import is_right, normalise


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        (" Yes. ", "yes"),
        ("A  black\ncat", "a black cat"),
        ("no !?", "no"),
        ("3.5", "3.5"),
        ("the U.S.", "the u.s"),
        ("50%", "50%"),
        ("", ""),
    ],
)
def test_case_spaces_and_final_punctuation_do_not_make_another_answer(text, same_as):
    assert normalise(text) == same_as


def test_any_accepted_answer_is_right_and_a_longer_one_is_not():
    assert is_right("Two.", ["2", "two"])
    assert not is_right("two cats", ["2", "two"])
    assert not is_right("", ["two"])
