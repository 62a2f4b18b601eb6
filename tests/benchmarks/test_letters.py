"""ScienceQA, SEED-Bench and AI2D: options behind letters, and answers that are one."""

import pytest

from tests.benchmarks.choice_rows import ai2d_row, scienceqa_row, seed_row
from tests.benchmarks.scoring import right, scores
from victorctl.benchmarks.ai2d import AI2D
from victorctl.benchmarks.choices import find_letter
from victorctl.benchmarks.scienceqa import ScienceQA
from victorctl.benchmarks.seedbench import SEEDBench
from victorctl.data.formats import BadRow

science, seed, ai2d = ScienceQA(), SEEDBench(), AI2D()
DIRECTLY = "Answer with the option's letter from the given choices directly."


def test_scienceqa_shows_its_hint_before_the_question():
    asked = science.ask(scienceqa_row())

    picture, question = asked.parts
    assert picture["type"] == "image"
    assert question["text"] == (
        "Context: The passage.\nWhich state is farthest north?\n"
        f"A. West Virginia\nB. Louisiana\nC. Arizona\n{DIRECTLY}"
    )
    assert (asked.answers, asked.images, asked.type) == (
        ("B",),
        ("picture of image",),
        "social science",
    )


def test_scienceqa_without_a_hint_begins_with_the_question():
    for hint in ("", None):
        question = science.ask(scienceqa_row(hint=hint)).parts[1]["text"]
        assert question.startswith("Which state")


def test_scienceqa_asks_nothing_without_a_picture():
    assert science.ask(scienceqa_row(image=())) is None


@pytest.mark.parametrize(
    ("answer", "ours", "official"),
    [
        ("B", 1, 1),
        ("b", 1, 0),  # LLaVA: capital letters
        ("B.", 1, 0),  # LLaVA: a point and a space, and then something
        ("B. Louisiana", 1, 1),
        ("B.Louisiana", 1, 0),
        ("b. Louisiana", 0, 0),
        ("B) Louisiana", 0, 0),
        ("(B)", 0, 0),
        ("B, C", 0, 0),
        ("A. or B.", 0, 0),
        ("The answer is B.", 0, 1),
        ("The answer is B", 0, 0),  # LLaVA: some character follows
        ("The answer is B. The answer is C.", 0, 0),
        ("The answer is C.", 0, 0),
        ("Louisiana", 0, 0),
        ("Because", 0, 0),
        ("", 0, 0),
    ],
)
def test_scienceqa_takes_a_letter_or_one_before_a_point(answer, ours, official):
    marks = science.mark(answer, science.ask(scienceqa_row()))

    assert (marks["right"], marks["right_official"]) == (ours, official)


def test_scienceqa_has_the_score_of_each_reading():
    row = scienceqa_row()

    found = scores(science, [(row, "b"), (row, "B"), (row, "b"), (row, "")])

    assert (found["accuracy"], found["accuracy_official"]) == (3 / 4, 1 / 4)


def test_seed_bench_asks_about_pictures_and_not_about_videos():
    asked = seed.ask(seed_row(question_id="9"))

    assert asked.parts[1]["text"] == (
        f"How many towels are there?\nA. One\nB. Two\nC. Three\nD. Four\n{DIRECTLY}"
    )
    assert (asked.id, asked.unit, asked.type) == ("9", "1454426_2591111986", "Instances Counting")
    assert seed.ask(seed_row(data_type="video", image=("first", "second"))) is None


def test_seed_bench_shows_each_picture_of_a_row():
    asked = seed.ask(seed_row(image=("first", "second")))

    assert [part["type"] for part in asked.parts] == ["image", "image", "text"]
    assert asked.images == ("first", "second")


def test_data_need_not_tell_types_nor_name_pictures():
    row = seed_row()
    del row["data_id"], row["question_type_id"]
    asked, lesson = seed.ask(row), scienceqa_row()
    del lesson["subject"]

    assert (asked.unit, asked.type, science.ask(lesson).type) == (None, "all", "all")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("b", 1),
        ("B. Two", 1),
        ("Because", 1),  # only the first character counts
        ("(B)", 0),
        ("Two", 0),
        ("A, no: B", 0),
        ("", 0),
    ],
)
def test_seed_bench_takes_the_first_character(answer, expected):
    assert right(seed, seed_row(), answer) == expected


def test_ai2d_puts_options_behind_letters():
    asked = ai2d.ask(ai2d_row())

    assert asked.parts[1]["text"] == (
        f"What does the snake eat?\nA. grass\nB. mice\nC. hawks\nD. sun\n{DIRECTLY}"
    )
    assert (asked.answers, asked.images) == (("B",), ("picture of image",))
    assert (asked.id, asked.unit) == ("", None)  # the data name neither


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("b).", 1),
        ("B. mice", 1),
        ("B.A", 1),
        ("b. mice", 0),
        ("B mice", 0),
        ("B, C", 0),
        ("A. B", 0),
        ("mice", 0),
        ("b b", 0),
        ("", 0),
    ],
)
def test_ai2d_takes_a_letter_among_punctuation_or_one_before_a_point(answer, expected):
    assert right(ai2d, ai2d_row(), answer) == expected


@pytest.mark.parametrize(
    ("ask", "row", "said"),
    [
        (ai2d.ask, ai2d_row("4"), "the answer is '4', and none of 0, 1, 2, 3"),
        (ai2d.ask, ai2d_row("-1"), "the answer is '-1', and none of"),
        (science.ask, scienceqa_row(3), "the answer is '3', and none of 0, 1, 2"),
        (seed.ask, seed_row("AB"), "the answer is 'AB', and none of A, B, C, D"),
        (seed.ask, seed_row(None), "the answer is None, and none of"),
    ],
)
def test_a_right_answer_is_one_of_the_options(ask, row, said):
    with pytest.raises(BadRow, match=said):
        ask(row)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B is it, not (C)", "B"),  # the first character is surest
        ("(A) or (C): B", "B"),  # then the last
        ("(A)? No, the answer is C or so", "C"),  # then behind a phrase,
        ("The answer is C or A, C or", "A"),  # where the first place of each letter counts
        ("I take (A), or C. or", "A"),  # then brackets,
        ("I take A: or C. or", "C"),  # a point,
        ("I take A) or C: or", "C"),  # a colon,
        ("I take A or C) or", "C"),  # a bracket,
        ("I take C or xAx", "C"),  # a space,
        ("IxAxCx", "C"),  # and anything
        ("I take (A), or (C) or", "C"),  # the last of equals,
        ("I take (A), or (C), no, (A) or", "A"),  # at its last place
        ("Bad", "B"),
        ("Bad, it is C", "C"),  # the first character of a word is no letter
        ("E", None),
        ("b", None),
        ("", None),
    ],
)
def test_letters_are_found_in_the_surest_place(answer, letter):
    assert find_letter(answer, "ABCD") == letter
