"""Marks of free answers, worked by hand; none of this needs lmms-eval."""

import math

import pytest

from tests.benchmarks import storage
from tests.benchmarks.storage import rows
from victorctl.benchmarks import benchmark, vqa
from victorctl.benchmarks.matching import anls, anls_paper, bare, distance


def asked(name, **changes):
    found, row = benchmark(name), rows(name)[0] | changes
    row["image"] = storage.closed("0.png")
    return found.ask(row)


def marks(name, said, **changes):
    return benchmark(name).mark(said, asked(name, **changes))


def people(*answers):
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]


# Levelling


@pytest.mark.parametrize(
    ("answer", "levelled"),
    [
        ("The Two cats", "2 cats"),  # case, a number, an article
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),  # the table has it the wrong way round
        ("t-shirt", "t shirt"),  # a sign becomes a space
        ("yes - no", "yes no"),  # unless it stands beside one
        ("red/ green-blue", "red green blue"),
        ("1,000-2", "10002"),  # grouped digits: no sign leaves a space
        ("U.S.A. 3.5", "usa 3.5"),  # a full stop stays before a digit
        ("cat's", "cat's"),
        ("a an the", ""),
    ],
)
def test_vqa_levels_signs_articles_numbers_and_apostrophes(answer, levelled):
    assert vqa.level_less(answer) == levelled


@pytest.mark.parametrize(
    ("answer", "levelled"),
    [
        ("Smith's", "smith 's"),  # an 's is a word of its own
        ("1,000-2", "1000 2"),  # the comma goes first, so no digits are grouped any more
        ("red,green", "redgreen"),
        ("What?\nNo", "what no"),
    ],
)
def test_textvqa_levels_some_of_it_before(answer, levelled):
    assert vqa.level(answer) == levelled


def test_only_so_many_full_stops_are_left_out():
    assert vqa.level_less(40 * ".") == 8 * "."  # 32: a flag where the count belongs


# Ten people: an answer is worth the mean, over each left out, of min(1, others who gave it / 3).


@pytest.mark.parametrize(
    ("given", "worth"),
    [
        (1, 9 * (1 / 3) / 10),  # the one who gave it is left out once, and nobody else did
        (2, (2 * (1 / 3) + 8 * (2 / 3)) / 10),
        (3, (3 * (2 / 3) + 7) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_an_answer_is_worth_what_three_others_make_it(given, worth):
    answers = ["cat"] * given + ["dog"] * (10 - given)

    found = marks("vqav2", "Cat.", answers=people(*answers))["right"]
    assert found == pytest.approx(worth)
    assert marks("textvqa", "Cat.", answers=answers)["right"] == pytest.approx(worth)
    assert marks("vizwiz", "Cat.", answers=answers)["right"] == pytest.approx(worth)
    assert marks("vqav2", "bird", answers=people(*answers))["right"] == 0


def test_people_whom_nothing_tells_apart_are_left_out_together():
    same = [{"answer": "cat", "answer_id": 1}] * 3 + people(*["dog"] * 7)

    # each cat leaves out all three: 0; each dog leaves three cats: 1
    assert marks("vqav2", "cat", answers=same)["right"] == pytest.approx(7 / 10)


def test_vqas_own_code_levels_only_where_people_differ():
    agree, differ = people(*["two"] * 10), people("The two", *["two"] * 9)

    assert marks("vqav2", "2", answers=agree) == {"right": 1, "accuracy_official": 0}
    assert marks("vqav2", "two", answers=agree) == {"right": 1, "accuracy_official": 1}
    assert marks("vqav2", "Two", answers=agree) == {"right": 1, "accuracy_official": 0}
    assert marks("vqav2", "Two", answers=differ) == {"right": 1, "accuracy_official": 1}


def test_vizwiz_counts_by_vqas_own_code_too():
    given = ["Smith's"] * 5 + ["soup"] * 5

    # lmms-eval levels both to "smith 's"; VQA leaves "smith's" one word, and so is not "smith 's"
    assert marks("vizwiz", "Smith 's", answers=given) == {"right": 1, "accuracy_official": 0}


# GQA


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("It's, (1)!", "its 1"),
        ("İ", "i"),  # its small letter is two signs, and NumPy has room for one
        ("yes\0", "yes"),  # NumPy ends texts with zeros
        ("¿no?", "¿no"),  # only ASCII counts as punctuation
    ],
)
def test_bare_texts_have_neither_case_nor_punctuation(text, left):
    assert bare(text) == left


@pytest.mark.parametrize(
    ("answer", "right", "official"),
    [
        ("T-shirt.", 1, 1),
        ("tshirt", 1, 0),
        ("t shirt", 0, 0),
        ("t-shirt!", 1, 0),
        ("the t-shirt", 0, 0),
    ],
)
def test_gqa_leaves_case_and_punctuation_out(answer, right, official):
    found = marks("gqa", answer, answer="t-shirt")
    assert found == {"right": right, "accuracy_official": official}


# ChartQA


@pytest.mark.parametrize(
    ("right", "answer", "mark"),
    [
        ("20", "21", 1),  # 5 % more
        ("20", "19", 1),
        ("20", "21.01", 0),
        ("14", "-14", 0),
        ("23.5%", "0.235", 1),
        ("23.5%", "23.5", 0),  # the sign divides by 100
        ("0", "0", 1),
        ("0", "0.0", 0),  # nothing to divide by: texts are compared
        ("Lamb", "lamb", 1),
        ("Lamb", "lambs", 0),
        ("14", "14 items", 0),
        ("1,400", "1400", 0),  # no number to Python
        ("14", "nan", 0),
    ],
)
def test_chartqa_takes_numbers_five_percent_away(right, answer, mark):
    assert marks("chartqa", answer, answer=right)["right"] == mark


def test_chartqa_averages_both_halves_and_all():
    found = benchmark("chartqa")
    kinds = ["human_test", "human_test", "human_test", "augmented_test"]
    those = [asked("chartqa", type=kind, answer="a") for kind in kinds]
    given = [found.mark(answer, one) for answer, one in zip("abba", those, strict=True)]

    assert found.sum_up(found.tally(given, those)) == {
        "relaxed_accuracy": 2 / 4,
        "relaxed_accuracy_human": 1 / 3,
        "relaxed_accuracy_augmented": 1,
    }
    humans = found.sum_up(found.tally(given[:3], those[:3]))
    assert math.isnan(humans["relaxed_accuracy_augmented"])


# ANLS


@pytest.mark.parametrize(
    ("one", "other", "letters"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("abcd", "bcde", 2), ("ab", "ba", 2)],
)
def test_distance_is_the_fewest_letters_to_change(one, other, letters):
    assert distance(one, other) == distance(other, one) == letters


@pytest.mark.parametrize(
    ("answer", "right", "score", "paper"),
    [
        ("San Diego", ["san diego"], 1, 1),
        ("San Diago", ["San Diego", "Paris"], 8 / 9, 8 / 9),  # the nearest counts
        ("abxy", ["abcd"], 0.5, 0),  # half: enough for the code, not for the paper
        ("axyz", ["abcd"], 0, 0),
        # spaces are levelled, 1 of 3 letters is wrong; the code divides by the 6 with its spaces
        ("a   c", ["a b c"], 1 - 2 / 5, 1 - 2 / 5),
        ("ab    d", ["ab c"], 1 - 1 / 7, 1 - 1 / 4),
        ("", [""], 1, 1),
        ("", ["a"], 0, 0),
        ("groß", ["gros"], 1 - 1 / 5, 1 - 1 / 4),  # capital letters are counted: GROSS
    ],
)
def test_likeness_is_one_less_the_share_of_letters_to_change(answer, right, score, paper):
    assert anls(answer, right) == pytest.approx(score)
    assert anls_paper(answer, right) == pytest.approx(paper)


@pytest.mark.parametrize("name", ["docvqa", "infovqa"])
def test_documents_are_marked_by_likeness(name):
    found = marks(name, "ab    d", answers=["x", "ab c"])
    assert found == {"right": pytest.approx(6 / 7), "anls_paper": 0.75}


# What is asked


def test_questions_in_small_letters_where_lmms_eval_writes_them_so():
    said = {
        name: asked(name, question="What does the SIGN say?")
        for name in ("vizwiz", "textvqa", "vqav2")
    }

    assert {name: one.parts[1]["text"] for name, one in said.items()} == {
        "vizwiz": "What does the sign say?\nWhen the provided information is insufficient, respond "
        "with 'Unanswerable'.\nAnswer the question using a single word or phrase.",
        "textvqa": "What does the sign say?\nAnswer the question using a single word or phrase.",
        "vqav2": "What does the SIGN say?\nAnswer the question using a single word or phrase.",
    }


def test_kinds_and_units_are_those_of_the_columns_or_none():
    told = {
        name: (asked(name).type, asked(name).unit) for name in ("vqav2", "gqa", "docvqa", "infovqa")
    }
    bare = asked("vqav2", image_id=None, answer_type=None)

    assert told == {
        "vqav2": ("number", "42"),
        "gqa": ("verify", "n161313"),
        "docvqa": ("figure/diagram", "pybv0228 81"),
        "infovqa": ("single span", "https://example.org/1.png?"),
    }
    assert (bare.type, bare.unit) == ("all", None)


def test_the_answer_of_most_people_comes_first():
    assert asked("vqav2").answers == ("2", "two", "3")
