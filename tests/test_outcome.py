"""What was found is said in a sentence, and set out in rows."""

import re

import pytest

from tests.evaluations import evaluation, of_benchmarks, of_today, pair, without_base
from victorctl.outcome import (
    Kept,
    benchmarks,
    costs,
    gaps,
    headline,
    likeness,
    qualities,
    rivals,
)


def sentence(result):
    return "".join(piece for piece, _ in headline(result))


def rows(grid):
    grid = grid.plain()
    return [grid.head, *((line.name, *line.cells) for line in grid.lines)]


# ---- The sentence --------------------------------------------------------------------------------


def test_the_outcome_is_said_in_one_sentence():
    assert sentence(evaluation()) == (
        "Victor with 8 registers keeps 97.3 % of its base's accuracy (95 % interval 96.1\N{EN DASH}"
        "98.4 %) at 33 instead of 100 visual tokens per layer; "
        "its first token takes 0.67\N{MULTIPLICATION SIGN} as long. "
        "The best of the simple ways, pool, keeps 85.4 %."
    )


def test_a_slower_model_is_called_slower_and_no_rival_is_named_that_did_not_run():
    result = evaluation(time_to_first_token=pair(0.06, 0.03), baselines={})

    assert sentence(result).endswith("its first token takes 2.00\N{MULTIPLICATION SIGN} as long.")


def test_without_a_base_nothing_is_claimed_to_be_kept():
    assert sentence(without_base()) == (
        "Victor with 8 registers answers 87.9 % of 2,000 questions right at 33 visual tokens per "
        "layer. No base was run: what it keeps is open."
    )


def test_of_a_base_that_is_never_right_nothing_can_be_kept():
    result = evaluation(accuracy=pair(0.1, 0.0), kept=None, interval=None)

    assert "Its base is never right: what it keeps is open." in sentence(result)


def test_where_there_is_no_interval_it_is_said():
    said = sentence(evaluation(interval=None))

    assert "97.3 % of its base's accuracy (no interval: too few pictures, or all alike) at" in said


def test_one_is_not_called_several():
    assert sentence(evaluation({"registers": 1})).startswith("Victor with 1 register keeps")
    alone = without_base(evaluation(questions=1))
    assert "of 1 question right" in sentence(alone)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.99, 1.01], True),
        ([1.0, 1.02], True),  # the ends are in it
        ([0.98, 1.0], True),
        ([0.97, 0.999], False),
        ([1.001, 1.02], False),  # better than the base is a difference, too
    ],
)
def test_a_difference_inside_the_noise_is_called_so(interval, said):
    result = evaluation(interval=interval)

    assert (" %, within noise of the base) at" in sentence(result)) is said
    assert qualities(result).noisy is said
    assert Kept(1.0, tuple(interval)).noise is said


@pytest.mark.parametrize(
    ("names", "compared", "alone"),
    [
        (("pope", "mme"), "keeps 101.0 % of its base's mean score over 2 benchmarks (95 %",
         "scores 78.8 % on average over 2 benchmarks at 33"),
        (("pope",), "keeps 100.0 % of its base's score on POPE (95 %",
         "scores 86.0 % on POPE (f1) at 33"),
        (("mme",), "keeps 102.3 % of its base's score on MME (95 %",
         "scores 1,432.2 on MME (perception of 2,000) at 33"),
    ],
)  # fmt: skip
def test_benchmarks_are_named_and_only_shares_are_percent(names, compared, alone):
    assert compared in sentence(of_benchmarks(*names))
    assert alone in sentence(without_base(of_benchmarks(*names)))


def test_how_alike_the_answers_are_is_said_as_far_as_it_is_known():
    same = "Model and base give the same answer to 93.1 % of the questions"

    assert likeness(of_today()) == (
        f"{same}; their first tokens' distributions are 0.0132 nats apart (KL)."
    )
    assert likeness(evaluation()) == f"{same}."  # of the first version
    assert likeness(without_base()) == ""


def test_what_was_not_measured_or_counted_is_said():
    nothing = pair(None, None)
    result = evaluation(omissions=["The tower is not counted."], time_to_first_token=nothing)

    assert list(gaps(result)) == ["The tower is not counted.", "No speed was measured."]
    assert list(gaps(evaluation())) == []


# ---- Rows ----------------------------------------------------------------------------------------


def test_reports_of_the_first_version_have_an_interval_for_the_whole_alone():
    dash = "\N{EN DASH}"

    assert rows(qualities(evaluation())) == [
        ("right answers", "base", "model", "kept", "95 % interval", "questions"),
        ("all", "90.3 %", "87.9 %", "97.3 %", f"96.1{dash}98.4", "2,000"),
        ("how many", "83.0 %", "78.0 %", "94.0 %", dash, "600"),  # 0.78 / 0.83
        ("colour", "93.0 %", "91.0 %", "97.8 %", dash, "1,400"),
    ]


def test_types_of_today_have_intervals_and_noise_is_marked():
    assert [row[3:5] for row in rows(qualities(of_today()))[2:]] == [
        ("94.0 %", "90.0\N{EN DASH}97.0"),
        ("100.0 %", "98.0\N{EN DASH}102.0 \N{ALMOST EQUAL TO}"),
    ]


def test_the_only_type_is_not_listed_beside_the_whole_if_it_has_no_name():
    row = {**pair(0.8, 0.9), "questions": 2000}

    assert len(qualities(evaluation(by_type={"all": row})).lines) == 1
    several = qualities(evaluation(by_type={"all": row, "colour": row}))
    assert [(line.name, line.own) for line in several.lines] == [
        ("all", True),
        ("no type", False),
        ("colour", False),
    ]


def test_each_benchmark_has_its_own_unit_and_their_mean_comes_first():
    noise = "\N{ALMOST EQUAL TO}"

    assert rows(qualities(of_benchmarks())) == [
        ("benchmark", "base", "model", "kept", "95 % interval", "questions", "same answers",
         "KL, nats"),
        ("mean of 2", "78.0 %", "78.8 %", "101.0 %", f"99.0\N{EN DASH}103.0 {noise}", "11,374",
         "93.1 %", "0.0132"),
        ("POPE, f1", "86.0 %", "86.0 %", "100.0 %", f"99.1\N{EN DASH}100.8 {noise}", "9,000",
         "97.0 %", "0.00200"),
        ("MME, perception of 2,000", "1,400", "1,432.2", "102.3 %", "100.4\N{EN DASH}105.0",
         "2,374", "91.0 %", "0.0400"),
    ]  # fmt: skip


def test_one_benchmark_has_no_mean():
    assert [line.name for line in qualities(of_benchmarks("mme")).lines] == ["MME"]
    assert benchmarks(of_benchmarks("mme")).keys() == {"mme"}


def test_columns_of_which_nothing_is_known_are_left_out():
    assert qualities(without_base()).known().head == ("right answers", "model", "questions")
    alone = qualities(without_base(of_benchmarks())).known()
    assert alone.head == ("benchmark", "model", "questions")
    assert costs(without_base()).known().head == ("cost", "model")
    # A dash beside a number stays: how many are right is known of the colours alone.
    partly = evaluation(accuracy=pair(0.9, None), kept=None, interval=None)
    assert qualities(partly).known().head == qualities(partly).head


def test_rivals_are_listed_with_what_is_known_of_them():
    times, dash = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

    assert rows(rivals(of_today())) == [
        ("side by side", "tokens per layer", "right", "kept", "95 % interval", "prefill"),
        ("base", "100", "90.3 %", "100.0 %", dash, f"1.00{times}"),
        ("Victor-8", "33", "87.9 %", "97.3 %", f"96.1{dash}98.4", f"1.93{times}"),
        ("pool", "32.5", "77.2 %", "85.4 %", f"82.0{dash}88.0", f"1.90{times}"),
        ("no-image", "0", "30.0 %", "33.2 %", dash, dash),
    ]
    assert rivals(of_benchmarks()).head[2] == "score"


def test_no_speeds_are_listed_where_none_was_measured():
    untimed = of_today(speedup=dict.fromkeys(("prefill", "generate_2", "generate_128")))

    assert "prefill" not in rivals(untimed).head


def test_the_cost_of_seeing_is_listed_where_it_was_counted():
    seen = costs(evaluation(vision_flops=pair(2.1e7, 2.1e7)))

    assert "FLOPs, vision" in [line.name for line in seen.lines]
    assert not [line for line in costs(evaluation()).lines if re.search("vision", line.name)]
