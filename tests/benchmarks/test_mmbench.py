"""MMBench: what an answer names, and questions asked once or in each order of their options."""

import pytest

from tests.benchmarks.choice_rows import mmbench_row
from tests.benchmarks.scoring import right, scores
from victorctl.benchmarks.mmbench import MMBench
from victorctl.benchmarks.mmbench_circular import MMBenchCircular
from victorctl.data.formats import BadRow

ONCE, CIRCULAR = MMBench(), MMBenchCircular()
OCR = ("ocr", "finegrained_perception (instance-level)")
STYLE = ("image_style", "coarse_perception")


def test_the_question_lists_the_options_that_there_are():
    asked = ONCE.ask(mmbench_row())

    assert asked.parts[1]["text"] == (
        "Which animal is it? There are several options:\nA. cat\nB. dog\nC. black bear\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (asked.id, asked.unit, asked.type, asked.answers) == ("241", 241, "ocr", ("B",))


@pytest.mark.parametrize(
    ("hint", "begins"),
    [("A zoo.", "A zoo. Which"), ("nan", "Which"), (None, "Which"), ("", "Which")],
)
def test_a_hint_comes_first(hint, begins):
    question = ONCE.ask(mmbench_row(hint=hint)).parts[1]["text"]

    assert question.startswith(f"{begins} animal")


def test_missing_and_empty_options_are_not_shown():
    question = ONCE.ask(mmbench_row(options=("cat", "dog", None, ""))).parts[1]["text"]

    assert "options:\nA. cat\nB. dog\n\nAnswer" in question


def test_an_answer_must_be_one_of_the_options():
    with pytest.raises(BadRow, match="the answer is 'C', and none of A, B"):
        ONCE.ask(mmbench_row("C", options=("cat", "dog", None, None)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("B.", 1),
        ("(B)", 1),
        ("The answer is :B).", 1),
        ("A dog is B", 1),  # two bare letters: no form has only one; then the one option inside
        ("A B", 0),  # two letters, and no option inside: the first character is surest
        ("B A", 1),
        ("It is A dog", 1),  # A is an article among four words, and only "dog" is inside
        ("A dog there", 0),  # but not among three
        ("A furry one, B.", 1),
        ("E", 0),
        ("E dog", 0),  # a letter, though no option has it
        ("b", 0),
        ("a Dog", 1),
        ("a dog, no cat", 0),  # two options inside, and no letter
        ("a bear", 0),
        ("B. or C.", 1),
        ("C. or B.", 0),
        ("I say XB", 1),  # any capital letter is better than none
        ("", 0),
    ],
)
def test_answers_are_read_by_letter_then_by_option_then_by_any_letter(answer, expected):
    assert right(ONCE, mmbench_row(), answer) == expected


def test_an_option_that_is_not_there_still_has_its_word():
    # lmms-eval takes "nan" for the words of an option, and "banana" has them
    assert right(ONCE, mmbench_row(options=("cat", "banana", "nan", "nan")), "banana") == 0
    assert right(ONCE, mmbench_row(options=("cat", "banana", None, None)), "banana") == 1


def test_rotated_options_are_asked_by_the_circular_benchmark_alone():
    rotated = mmbench_row(index=2_000_241)

    assert ONCE.ask(rotated) is None
    assert CIRCULAR.ask(rotated).unit == ONCE.ask(mmbench_row()).unit == 241
    assert CIRCULAR.ask(rotated).id == "2000241"


def test_columns_of_a_table_without_numbers_are_read():
    assert CIRCULAR.ask(mmbench_row(index="1000241")).unit == 241


ANSWERED = [
    (mmbench_row("B", index=1, ability=OCR), "B"),
    (mmbench_row("A", index=1_000_001, ability=OCR), "A"),
    (mmbench_row("C", index=2_000_001, ability=OCR), "C"),
    (mmbench_row("B", index=2, ability=OCR), "B"),
    (mmbench_row("A", index=1_000_002, ability=OCR), "B"),
    (mmbench_row("B", index=3, ability=STYLE), "C"),
    (mmbench_row("A", index=1_000_003, ability=STYLE), "A"),
    (mmbench_row("A", index=1_000_004, ability=STYLE), "A"),  # whose first order was not asked
]


def test_each_question_once():
    found = scores(ONCE, ANSWERED)

    assert found == {
        "accuracy": 2 / 3,
        "accuracy/ocr": 1,
        "accuracy/finegrained_perception (instance-level)": 1,
        "accuracy/image_style": 0,
        "accuracy/coarse_perception": 0,
    }


def test_a_question_is_right_only_in_every_order():
    found = scores(CIRCULAR, ANSWERED)

    # 1 is right in all three; 2 and 3 in one of two. Of rows, 6 of 8 are right.
    assert found == {
        "accuracy": 1 / 3,
        "accuracy/ocr": 1 / 2,
        "accuracy/finegrained_perception (instance-level)": 1 / 2,
        "accuracy/image_style": 0,
        "accuracy/coarse_perception": 0,
    }
