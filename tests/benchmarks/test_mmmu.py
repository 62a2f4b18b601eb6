"""MMMU: letters and open answers, guesses, and the domains."""

import random

import pytest

from tests.benchmarks.choice_rows import mmmu_row
from tests.benchmarks.scoring import right, scores
from victorctl.benchmarks.mmmu import DOMAINS, MMMU
from victorctl.data.formats import BadRow

mmmu = MMMU()


def open_row(answer, **other):
    return mmmu_row(answer, options="[]", **other)


def test_a_question_keeps_the_names_of_its_pictures_which_come_first():
    asked = mmmu.ask(mmmu_row(question="From <image 2> to <image 1>, and <image 2>?"))

    assert [part["type"] for part in asked.parts] == ["image", "image", "text"]
    assert asked.images == ("picture 1", "picture 2")
    assert asked.parts[-1]["text"] == (
        "From <image 2> to <image 1>, and <image 2>?\n"
        "A. $6\nB. Seven cats\nC. $8\nD. $9\n\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_pictures_named_in_options_are_shown_and_those_named_nowhere_are_not():
    asked = mmmu.ask(mmmu_row(question="Which one?", options="['<image 3>', '<image 1>']"))

    assert asked.images == ("picture 1", "picture 3")


def test_an_open_question_asks_for_a_word():
    asked = mmmu.ask(open_row("24"))

    assert asked.parts[-1]["text"] == (
        "What follows from <image 1>?\n\nAnswer the question using a single word or phrase."
    )
    assert asked.answers == ("24",)


def test_the_subject_is_in_the_id():
    assert mmmu.ask(mmmu_row(name="validation_Art_Theory_12")).type == "Art_Theory"


@pytest.mark.parametrize("options", ["A, B", "[", "7"])
def test_options_are_a_list_written_in_python(options):
    with pytest.raises(BadRow, match="its options are no list"):
        mmmu.ask(mmmu_row(options=options))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("'B'!", "B"),
        ("A B", "B"),  # the last of those with spaces around,
        ("A B A", "A"),  # at its last place
        ("(C) or (B) not A ", "B"),  # brackets are surer
        ("BA ", "A"),  # a letter and a space, whatever is before
        ("xA xB y", "A"),  # neither has spaces around: the first in the alphabet
        ("A.x B.x", "A"),  # so it is, too, with points
        ("It must be seven cats, no doubt", "B"),
        ("It is seven cats here", None),  # too short for that
        ("I am sure it is $8, not $6", "A"),  # of several, the last
        ("seven", None),
        ("b", None),
        ("", None),
    ],
)
def test_answers_name_an_option_by_letter_and_only_in_long_ones_by_words(answer, letter):
    options = "ABCD" if letter is None else letter
    named = [
        one for one in options if mmmu.mark(answer, mmmu.ask(mmmu_row(one)))["right_unguessed"]
    ]

    assert named == ([] if letter is None else [letter])


def test_an_answer_that_names_none_is_drawn_by_the_question_s_id():
    names = [f"validation_Math_{number}" for number in range(400)]
    rows = [mmmu_row(name=name) for name in names]
    drawn = [random.Random(name).choice("ABCD") == "B" for name in names]

    assert [right(mmmu, row, "none") for row in rows] == drawn
    assert [right(mmmu, row, "?") for row in reversed(rows)] == drawn[::-1]
    assert 80 <= sum(drawn) <= 120  # a quarter, with four standard deviations of 8.7 / 2


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("24", "24", 1),
        ("24", "24.0", 1),
        ("24", "The answer is 24 apples", 1),
        ("24", "240", 0),
        ("1000", "It costs 1,000 euros", 1),
        ("1", "It costs 1,000 euros", 0),
        ("1500", "It weighs 1.5e3 kg", 1),
        ("1,000", "It costs 1000 dollars", 1),
        ("1000", "1,000", 1),
        ("0.5", "50%", 0),
        ("2.35", "x = 2.349", 1),  # two decimals
        ("2.35", "2.34", 0),
        ("0.001", "1e-3", 1),
        ("-3", "3", 0),
        ("3", "so x is 5\nso y is 3", 1),  # any line
        ("5", "x = 5\ny is 3", 0),  # an equals sign counts in the last line,
        ("3", "x is 5\ny = 3", 1),  # and there it does
        ("black cat", "A black cat.", 1),
        ("Black Cat", "is it the BLACK CAT", 1),
        ("cat", "concatenate", 1),  # words are looked for anywhere
        ("black cat", "cat", 0),
        ("cat", "the cat is here", 0),  # only behind "is"
        ("x", "max", 0),  # a letter has a space beside it
        ("cat", "so cat is dog", 0),  # the shortest end of a line
        ("cat", "it is cat, it is dog", 0),  # behind the last of a word
        ("x", "it is x", 1),
        ("x", "x.", 1),
        ("x", "a x b", 1),
        ("cat", "the answer is: \nfinal cat", 1),
    ],
)
def test_open_answers_hold_the_right_one_as_words_or_as_a_number(truth, answer, expected):
    assert right(mmmu, open_row(truth), answer) == expected


def test_an_open_question_may_have_several_answers():
    assert right(mmmu, open_row(["24", "two dozen"]), "two dozen") == 1
    assert right(mmmu, open_row(["24", "two dozen"]), "24") == 1
    assert right(mmmu, open_row(["24", "two dozen"]), "25") == 0


def test_scores_of_subjects_and_of_their_domains():
    lucky = next(
        name
        for name in (f"validation_Finance_{number}" for number in range(99))
        if random.Random(name).choice("ABCD") == "B"
    )
    answered = [
        (mmmu_row("B", name="validation_Accounting_1"), "B"),
        (mmmu_row("B", name="validation_Accounting_2"), "A"),
        (mmmu_row("B", name=lucky), "I do not know"),
        (open_row("24", name="validation_Math_1"), "25"),
    ]

    found = scores(mmmu, answered)

    # 2 of 4 with the guess, 1 of 4 without; Business: 2 of 3, not the mean of 1/2 and 1
    assert found == {
        "accuracy": 1 / 2,
        "accuracy_unguessed": 1 / 4,
        "accuracy/Accounting": 1 / 2,
        "accuracy/Finance": 1,
        "accuracy/Math": 0,
        "accuracy/Business": pytest.approx(2 / 3),
        "accuracy/Science": 0,
    }


def test_there_are_30_subjects_in_6_domains():
    assert len(DOMAINS) == 6
    assert len({subject for subjects in DOMAINS.values() for subject in subjects}) == 30
