"""POPE: what counts as yes, for lmms-eval and for LLaVA, and the scores of both."""

import math

import pytest

from tests.benchmarks.choice_rows import pope_row
from tests.benchmarks.scoring import scores
from victorctl.benchmarks.pope import POPE
from victorctl.data.formats import BadRow

pope = POPE()


def test_the_question_is_put_below_its_picture_with_a_word_on_brevity():
    asked = pope.ask(pope_row(question=" Is there a snowboard in the image? ", category="popular"))

    picture, question = asked.parts
    assert (picture["type"], asked.images) == ("image", ("picture of image",))
    assert question["text"] == (
        "Is there a snowboard in the image?\nAnswer the question using a single word or phrase."
    )
    assert (asked.answers, asked.type) == (("yes",), "popular")


def test_numbers_begin_anew_in_each_category_and_pictures_do_not():
    rows = [pope_row(category=category) for category in ("random", "popular", "adversarial")]
    asked = [pope.ask(row) for row in rows]

    assert len({one.id for one in asked}) == 3
    assert len({one.unit for one in asked}) == 1


def test_data_need_not_name_the_pictures():
    row = pope_row()
    del row["image_source"]

    assert pope.ask(row).unit is None


def test_a_right_answer_is_yes_or_no():
    assert pope.ask(pope_row(" No")).answers == ("no",)
    with pytest.raises(BadRow, match=r"the answer is 'maybe', and none of yes, no"):
        pope.ask(pope_row("maybe"))


@pytest.mark.parametrize(
    ("answer", "here", "official"),
    [
        ("yes", "yes", "yes"),
        ("YES", "yes", "yes"),
        ("no", "no", "no"),
        ("No", "no", "no"),
        ("NO", "no", "yes"),  # LLaVA knows three spellings
        ("Yes.", "", "yes"),
        ("No.", "", "no"),
        ("No, there is none", "", "no"),
        ("There is no dog", "", "no"),
        ("It is not there", "", "no"),
        ("Not there", "", "yes"),
        ("Nothing", "", "yes"),
        ("Yes. No dog", "", "yes"),  # of its first sentence
        ("No\nYes", "", "yes"),  # words end at spaces, not at lines
        ("", "", "yes"),
    ],
)
@pytest.mark.parametrize("truth", ["yes", "no"])
def test_answers_are_read_in_two_ways(answer, here, official, truth):
    marks = pope.mark(answer, pope.ask(pope_row(truth)))

    def counted(said):
        return {"yes": "tp" if truth == "yes" else "fp", "no": "tn" if truth == "no" else "fn"}.get(
            said
        )

    names = {name for name, value in marks.items() if value and name not in ("right", "yes")}
    assert names == {name for name in (counted(here), f"{counted(official)}_official") if name}
    assert marks["right"] == (here == truth)


def test_scores_by_lmms_eval_and_by_llava():
    answered = [
        (pope_row("yes", category="random"), "yes"),
        (pope_row("yes", category="random"), "Yes."),
        (pope_row("yes", category="random"), "no"),
        (pope_row("no", category="random"), "no"),
        (pope_row("yes", category="popular"), "no"),
        (pope_row("no", category="popular"), "yes"),
        (pope_row("no", category="popular"), "There is no dog"),
    ]

    found = scores(pope, answered)

    # lmms-eval: tp 1, fp 1, fn 2, tn 1 and two that are neither; "Yes." as a miss would make recall
    # 1/4 and F1 1/3. The ratio of yes is that of the right answers; of those given it is 2/7.
    assert found["accuracy"] == pytest.approx(2 / 7)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(2 / 5)
    assert found["yes_ratio"] == pytest.approx(4 / 7)
    # LLaVA: tp 2, fp 1, fn 2, tn 2
    assert found["accuracy_official"] == pytest.approx(4 / 7)
    assert found["precision_official"] == pytest.approx(2 / 3)
    assert found["recall_official"] == pytest.approx(1 / 2)
    assert found["f1_official"] == pytest.approx(4 / 7)
    assert found["yes_ratio_official"] == pytest.approx(3 / 7)
    # random: tp 1, fn 1, for LLaVA tp 2, fn 1; popular: fp 1, fn 1 for both
    assert found["f1/random"] == pytest.approx(2 / 3)
    assert found["f1/popular"] == 0
    assert found["f1_official/random"] == pytest.approx(4 / 5)
    assert found["f1_official_mean"] == pytest.approx(2 / 5)  # not 4/7, that of all questions
    assert pope.main == "f1"


def test_nothing_called_yes_scores_zero_and_nothing_asked_scores_nothing():
    found = scores(pope, [(pope_row("no"), "no")])
    empty = pope.sum_up(
        dict.fromkeys(pope.tally([], []) | pope.mark("", pope.ask(pope_row())), 0.0)
    )

    assert (found["f1"], found["precision"], found["recall"], found["accuracy"]) == (0, 0, 0, 1)
    assert math.isnan(empty["f1"])
    assert math.isnan(empty["accuracy"])
