"""Answers and token counts become the right numbers."""

import pytest

from victorctl.cost import Shape
from victorctl.measures import Load, adapter_flops, is_right, mark, normalise, quality, spend
from victorctl.statistics import kept_interval

SHAPE = Shape(
    layers=4,
    hidden=10,
    mlp=10,
    heads=2,
    kv_heads=1,
    head_dim=3,
    vocab=7,
    gated=True,
    value_bytes=2,
    tower=None,
    features=0,
    projected=0,
    omissions=(),
)


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


# Six questions about three pictures. The model is right in 0, 2 and 3, the base in 0 to 3. They say
# the same in 0, 2, 3, and in 5, where it is wrong; in 4 both are wrong, each in its own way.
ACCEPTED = [["a"], ["b"], ["c"], ["d", "e"], ["f"], ["g"]]
MODEL = ["a", "x", "C", "e", "x", "x."]
BASE = ["A.", "b", "c", "E", "y", "x"]
TYPES = ["what", "where", "what", "where", "what", "what"]
PICTURES = ["p", "p", "p", "q", "q", "r"]


def test_quality_is_summed_up_over_all_questions_and_by_type():
    marks = mark(ACCEPTED, MODEL, BASE)

    found = quality(marks, types=TYPES, pictures=PICTURES, seed=3)

    assert found["questions"] == 6
    assert found["accuracy"] == {"model": 3 / 6, "base": 4 / 6}
    assert found["kept"] == pytest.approx(3 / 4)
    assert found["agreement"] == pytest.approx(4 / 6)
    assert found["by_type"] == {
        "what": {"model": 2 / 4, "base": 2 / 4, "questions": 4},
        "where": {"model": 1 / 2, "base": 2 / 2, "questions": 2},
    }
    right = [1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]
    assert tuple(found["interval"]) == kept_interval(*right, groups=PICTURES, seed=3)


def test_without_a_base_there_is_nothing_to_keep():
    found = quality(mark(ACCEPTED, MODEL, None), types=TYPES, pictures=PICTURES, seed=0)

    assert found["accuracy"] == {"model": 0.5, "base": None}
    assert found["kept"] is found["interval"] is found["agreement"] is None
    assert found["by_type"]["where"] == {"model": 0.5, "base": None, "questions": 2}


def test_one_picture_gives_no_interval():
    found = quality(mark(ACCEPTED, MODEL, BASE), types=TYPES, pictures=["p"] * 6, seed=0)

    assert found["kept"] == pytest.approx(3 / 4)
    assert found["interval"] is None


def test_what_a_base_that_is_never_right_leaves_to_be_kept_is_open():
    found = quality(mark([["z"]], ["z"], ["y"]), types=["all"], pictures=["p"], seed=0)

    assert found["kept"] is found["interval"] is None


def test_costs_are_means_over_prompts_not_costs_of_the_mean_prompt():
    # Layer 0 of 4 sees text and all visual tokens, layers 1 to 3 only those that are left:
    # prompt A: 5 + 10, then 5 + 2; prompt B, three times: 1 + 4, then 1 + 0.
    loads = [Load(10, 2, 5), *[Load(4, 0, 1)] * 3]
    a, b = [15, 7, 7, 7], [5, 1, 1, 1]

    found = spend(SHAPE, 1, loads)

    assert found["mean_visual_tokens"] == (16 / 4 + 3 * 4 / 4) / 4
    # Keys and values are 3 wide and of 2 bytes.
    assert found["cache_bytes"] == 12 * (sum(a) + 3 * sum(b)) / 4
    # A token's products, queries 6 and keys 3 wide: 2 x 10 x (2 x 6 + 2 x 3 + 3 x 10) = 960;
    # a pair's scores and sums: 4 x 6 = 24; the output layer, once: 2 x 10 x 7 = 140.
    flops = [sum(960 * n + 24 * n * n for n in layers) + 140 for layers in (a, b)]
    assert found["prefill_flops"] == (flops[0] + 3 * flops[1]) / 4


@pytest.mark.parametrize(("layers", "adapted"), [("all", 4), ("early", 1)])
def test_updates_at_registers_are_counted_where_they_act(layers, adapted):
    # Ends of the Linears: q and o 10 + 6 each, k and v 10 + 3 each, three of the MLP 10 + 10 each.
    ends = 2 * 16 + 2 * 13 + 3 * 20
    victor = {"drop_layer": 1, "adapter": {"rank": 5, "alpha": 5.0, "layers": layers}}

    assert adapter_flops(SHAPE, victor, 8) == 2 * 8 * 5 * ends * adapted
    assert adapter_flops(SHAPE, victor | {"adapter": None}, 8) == 0
