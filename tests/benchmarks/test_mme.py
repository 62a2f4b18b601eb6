"""MME: questions in pairs, and points by category."""

import numpy as np
import pytest

from tests.benchmarks.choice_rows import mme_row
from tests.benchmarks.scoring import right, score, scores, tally
from victorctl.benchmarks.mme import COGNITION, MME, PERCEPTION
from victorctl.data.formats import BadRow

mme = MME()


def pair(yes: str, no: str, **where):
    """Answer the two questions about a picture."""
    return [(mme_row("Yes", **where), yes), (mme_row("No", **where), no)]


def test_the_data_s_own_request_gives_way_to_the_usual_one():
    asked = mme.ask(mme_row())

    assert asked.parts[1]["text"] == (
        "Is there a dog in it?\nAnswer the question using a single word or phrase."
    )
    assert (asked.answers, asked.type, asked.images) == (
        ("yes",),
        "existence",
        ("picture of image",),
    )


def test_the_questions_about_a_picture_are_a_unit_with_two_names():
    yes, no = (mme.ask(row) for row, _ in pair("", ""))
    other = mme.ask(mme_row(category="count"))

    assert yes.unit == no.unit
    assert yes.id != no.id
    assert other.unit != yes.unit


def test_a_right_answer_is_yes_or_no():
    assert mme.ask(mme_row() | {"answer": "No."}).answers == ("no",)
    with pytest.raises(BadRow, match="the answer is 'maybe', and none of yes, no"):
        mme.ask(mme_row() | {"answer": "Maybe"})


@pytest.mark.parametrize(
    ("answer", "means"),
    [
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        ("(Yes)", "yes"),
        ("y", "yes"),
        ("Y.", "yes"),
        ("no.", "no"),
        ("n", "no"),
        ("Not at all", "no"),  # "no" is in its first four characters
        ("None", "no"),
        ("noyes", "no"),
        ("oyes", "yes"),
        ("yeno", "no"),
        ("I say no", "other"),
        ("It is, yes", "other"),
        ("x", "other"),
        ("", "other"),
    ],
)
def test_answers_are_read_from_their_first_four_characters(answer, means):
    assert right(mme, mme_row("Yes"), answer) == (means == "yes")
    assert right(mme, mme_row("No"), answer) == (means == "no")


def test_a_category_has_points_for_questions_and_for_pictures():
    answered = [
        *pair("yes", "no", picture="a"),
        *pair("yes", "yes", picture="b"),
        *pair("no", "yes", category="count"),
        *pair("yes", "no", category="code_reasoning"),
        (mme_row("Yes", picture="c"), "yes"),  # its other question was not asked
    ]

    found = scores(mme, answered)

    # existence: 3 of 4 questions, 1 of 2 pictures; with the lone question 4/5 and 1/3 or 2/3
    assert found["accuracy/existence"] == 3 / 4
    assert found["accuracy_plus/existence"] == 1 / 2
    assert found["points/existence"] == 75 + 50
    assert found["points/count"] == 0
    assert found["perception"] == 125  # not 62.5: categories are added up
    assert found["cognition"] == 200


def test_all_right_is_2000_points_of_perception_and_800_of_cognition():
    kinds = (*PERCEPTION, *COGNITION)
    found = scores(mme, [one for kind in kinds for one in pair("Yes", "No", category=kind)])

    assert len(kinds) == 14
    assert found[mme.main] == mme.highest == 2000
    assert found["cognition"] == 800


def test_draws_without_a_category_have_the_points_of_the_others():
    answered = [*pair("yes", "no"), *pair("yes", "yes", category="count")]
    names, units = tally(mme, [(mme.ask(row), answer) for row, answer in answered])
    draws = np.array([[1, 1], [2, 0], [0, 2], [0, 0]])

    found = score(mme, names, draws @ units)

    assert found["perception"].tolist()[:3] == [250, 200, 50]
    assert np.isnan(found["perception"][3])
    assert np.isnan(found["points/count"]).tolist() == [False, True, False, True]
    assert np.isnan(found["cognition"]).all()


def test_the_share_is_of_the_points_of_those_categories_of_perception_that_were_asked():
    answered = [
        *pair("yes", "no"),
        *pair("yes", "yes", category="count"),
        *pair("no", "yes", category="code_reasoning"),
        (mme_row("Yes", category="posters"), "yes"),  # of no pair: posters were not asked
    ]
    names, units = tally(mme, [(mme.ask(row), answer) for row, answer in answered])
    draws = np.array([[1, 1, 1, 1], [2, 0, 0, 1], [0, 2, 1, 0], [0, 0, 1, 1]])

    found = mme.share(dict(zip(names, (draws @ units).T, strict=True)))

    # 200 and 50 points of 400; 200 of 200; 50 of 200. Of 2,000 they were 0.125, 0.1 and 0.025.
    assert found.tolist()[:3] == [250 / 400, 1, 1 / 4]
    assert np.isnan(found[3])  # of perception, nothing was asked
