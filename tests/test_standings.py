"""Who wins where, and whether that is more than chance.

Faults planted and caught: those that did not reach a budget take part, the front has rows that
another beats, the difference is of kept shares instead of right answers.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from victorctl.standings import front, sentences, table
from victorctl.units import DASH, TIMES


def row(name, tokens, right, *, budget=30.0, reached=True, **more):
    kept = right / 0.8
    return {
        "method": name, "name": name, "budget": budget, "reached": reached,
        "mean_visual_tokens": tokens, "accuracy": right, "kept": kept,
        "interval": [kept - 0.05, kept + 0.05],
        "prefill_speedup": 2.0, "generate_2_speedup": 1.5, "generate_128_speedup": 1.25,
        "cache_bytes": 2048, "unverified": [], **more,
    }  # fmt: skip


def drawn(**shares):
    return [SimpleNamespace(drawn={name: np.array(of) for name, of in shares.items()})]


def test_who_keeps_most_of_those_that_are_there_is_named_with_the_next():
    rows = [row("pool", 30, 0.6), row("fastv", 31, 0.7), row("victor", 62, 0.79, reached=False)]
    same = [0.1] * 100
    findings = drawn(pool=[0.6] * 100, fastv=np.array([0.6] * 100) + same, victor=[0.79] * 100)
    (said,) = sentences(rows, findings)
    assert said == (
        "At 30 tokens: fastv keeps most, 87.5 %; the next, pool, is behind by 10.0 points of right "
        "answers (95 % interval +10.0 to +10.0, more than noise). Not there: victor."
    )


def test_a_lead_that_chance_may_give_is_called_so():
    rows = [row("pool", 30, 0.6), row("fastv", 30, 0.62)]
    ends = np.linspace(-0.2, 0.24, 100)
    (said,) = sentences(rows, drawn(pool=np.zeros(100), fastv=ends))
    assert "within the noise" in said


def test_one_alone_and_nobody():
    alone = [row("victor", 30, 0.7), row("pool", 9, 0.5, budget=10.0, reached=False)]
    first, second = sentences(alone, [SimpleNamespace(drawn=None)])
    assert first == "At 30 tokens: victor keeps most, 87.5 %, and is alone."
    assert second == "At 10 tokens: no method reaches it. Not there: pool."


def test_without_intervals_no_certainty_is_claimed():
    rows = [row("pool", 30, 0.6), row("fastv", 30, 0.7)]
    (said,) = sentences(rows, [SimpleNamespace(drawn=None)])
    assert said.endswith("is behind by 10.0 points of right answers.")


def test_on_the_front_nothing_keeps_as_much_for_fewer_tokens():
    rows = [row("a", 10, 0.5), row("b", 20, 0.45), row("c", 20, 0.6), row("d", 30, 0.6)]
    assert [each["name"] for each in front(rows)] == ["a", "c"]
    twice = [*rows, row("a", 10, 0.5, budget=99.0)]  # for another budget, the same
    assert [each["name"] for each in front(twice)] == ["a", "c"]


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_has_a_part_for_each_budget_best_first_and_those_who_are_not_there_last(width):
    rows = [
        row("pool", 30, 0.6), row("victor", 62, 0.79, reached=False), row("fastv", 31, 0.7),
        row("sparsevlm", 20, 0.3, budget=20.0, unverified=["a guess"]),
    ]  # fmt: skip
    base = {"mean_visual_tokens": 100.0, "accuracy": 0.8, "cache_bytes": 4096}
    console = Console(width=width)
    with console.capture() as shown:
        console.print(table({"base": base, "rows": rows, "standings": ["At 30 tokens: ..."]}))
    text = shown.get().replace(DASH, "-").replace(TIMES, "x")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    order = [
        line[0] for line in lines if line[0] in ("base", "fastv", "pool", "victor", "sparsevlm")
    ]
    assert order == ["base", "fastv", "pool", "victor", "sparsevlm"]
    assert "fastv * 31 70.0 % 87.5 % 82.5-92.5 2.00x 1.25x 2.00 KiB" in " ".join(text.split())
    assert "nearest" in text
    assert "not verified against the authors' code: sparsevlm" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= width


def test_a_base_that_is_never_right_leaves_nothing_to_keep():
    rows = [row("pool", 30, 0.0, kept=None), row("fastv", 30, 0.3, kept=None)]
    (said,) = sentences(rows, [SimpleNamespace(drawn=None)])
    assert said == "At 30 tokens: the base is never right, so there is nothing to keep."
