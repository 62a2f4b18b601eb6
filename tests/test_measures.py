"""Answers and token counts become the right numbers."""

from dataclasses import replace

import pytest

from victorctl.benchmarks.base import Asked, Scorer
from victorctl.cost import Shape
from victorctl.exact import Exact
from victorctl.measures import (
    Comparison,
    Load,
    Marked,
    adapter_flops,
    agreement,
    draw,
    interval,
    spend,
)

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


# Six questions about three pictures. The model is right in 0, 2 and 3, the base in 0 to 3. They say
# the same in 0, 2, 3, and in 5, where it is wrong; in 4 both are wrong, each in its own way.
ACCEPTED = [["a"], ["b"], ["c"], ["d", "e"], ["f"], ["g"]]
MODEL = ["a", "x", "C", "e", "x", "x."]
BASE = ["A.", "b", "c", "E", "y", "x"]
TYPES = ["what", "where", "what", "where", "what", "what"]
PICTURES = ["p", "p", "p", "q", "q", "r"]
ASKED = [
    Asked(str(n), (), (), tuple(answers), unit, type_, {})
    for n, (answers, unit, type_) in enumerate(zip(ACCEPTED, PICTURES, TYPES, strict=True))
]


def compared(asked=ASKED, base=BASE, scorer=Exact):
    theirs = None if base is None else Marked.of(scorer(), asked, base[: len(asked)])
    ours = Marked.of(scorer(), asked, MODEL[: len(asked)])
    return Comparison(ours, theirs, draw([ours, theirs], seed=3) if theirs else None)


def test_a_model_is_scored_beside_its_base():
    found = compared()

    assert found.score() == {"model": 3 / 6, "base": 4 / 6}
    assert found.kept() == pytest.approx(3 / 4)
    assert agreement(MODEL, BASE) == pytest.approx(4 / 6)
    assert found.metrics() == {"accuracy": {"model": 3 / 6, "base": 4 / 6}}


def test_a_type_is_summed_up_by_itself_with_an_interval_of_its_own():
    assert compared().of_type("where", seed=3) == {
        "model": 1 / 2,
        "base": 2 / 2,
        "questions": 2,
        "kept": 1 / 2,
        # Pictures p and q are right 0:1 and 1:1: both p 0, one each 1/2, both q 1; each is likely.
        "interval": [0.0, 1.0],
    }


def test_units_are_drawn_and_not_questions():
    # Pictures are right 2:3, 1:1 and 0:0. Three draws: 2/3 if q is never drawn, 1 if p is never,
    # and else in between. By questions, kept would reach from 0.25 or less to more than 1.
    assert interval(compared().draws) == pytest.approx([2 / 3, 1])


def test_without_a_base_there_is_nothing_to_keep():
    found = compared(base=None)

    assert found.score() == {"model": 0.5, "base": None}
    assert found.kept() is interval(found.draws) is agreement(MODEL, None) is None
    assert found.of_type("where", seed=3)["kept"] is None


def test_one_picture_gives_no_interval():
    found = compared([replace(one, unit="p") for one in ASKED])

    assert found.kept() == pytest.approx(3 / 4)
    assert found.draws is None


def test_what_a_base_that_is_never_right_leaves_to_be_kept_is_open():
    found = compared(base=["?"] * 6)

    assert found.kept() is interval(found.draws) is None


class Pairs(Scorer):
    """Gives ten points for each picture of which every question is right."""

    main, highest = "points", 30

    def mark(self, answer, asked):
        return {"right": float(answer.lower().rstrip(".") in asked.answers)}

    def tally(self, marks, asked):
        return {"whole": float(all(mark["right"] for mark in marks)), f"of {asked[0].unit}": 1.0}

    def sum_up(self, sums):
        return {"points": 10 * sums["whole"], "of p": sums.get("of p")}


def test_a_scorer_decides_what_a_unit_is_worth_and_in_what_unit():
    # Nobody is right in r. The base has p and half of q, the model nothing of p and half of q.
    found = compared(ASKED[:5], scorer=Pairs)

    assert found.score() == {"model": 0, "base": 10}
    assert found.normalised() == {"model": 0, "base": 1 / 3}
    assert found.metrics()["of p"] == {"model": 1, "base": 1}
    ours, theirs = found.draws
    assert set(theirs) == {0, 1 / 3, 2 / 3}  # two pictures drawn: p never, once or twice
    assert not ours.any()


def test_costs_are_means_over_prompts_not_costs_of_the_mean_prompt():
    # Layer 0 of 4 sees text and all visual tokens, layers 1 to 3 only those that are left:
    # prompt A: 5 + 10, then 5 + 2; prompt B, three times: 1 + 4, then 1 + 0.
    loads = [Load((10, 2, 2, 2), 5), *[Load((4, 0, 0, 0), 1)] * 3]
    a, b = [15, 7, 7, 7], [5, 1, 1, 1]

    found = spend(SHAPE, loads)

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
