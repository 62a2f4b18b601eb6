"""Numbers made of timings, against sums by hand.

Faults planted and caught: means for medians, the bound upside down, the tower left out of the
time to first token's bound.
"""

import pytest
from rich.console import Console

from victorctl.speeds import Load, against, bounds_of, paired, summarise, table
from victorctl.timing import Turn
from victorctl.units import TIMES

FIRST = "time_to_first_token"
TURNS = {
    FIRST: [Turn(3.0, 1.5)],
    "prefill": [Turn(4.0, 2.0), Turn(1.0, 0.5), Turn(2.0, 8.0)],
    "generate_2": [Turn(5.0, 2.0)],
    "generate_128": [Turn(26.0, 9.0)],
}
BASE, OURS = Load(800, 200, 40, 576.0), Load(200, 200, 10, 62.0)


def slower(factor):
    return {
        name: [Turn(factor * turn.seconds, 3 * turn.cpu_seconds) for turn in of]
        for name, of in TURNS.items()
    }


def test_timings_are_summed_up():
    found = summarise(TURNS, batch=4)

    assert found["seconds"] == {"prefill": 2.0, "generate_2": 5.0, "generate_128": 26.0}
    assert found[FIRST] == 3.0
    assert found["spread"]["prefill"] == [1.0, 4.0]
    assert found["cpu_seconds"]["prefill"] == 2.0
    assert found["decode_tokens_per_second"] == 4 * 126 / 21
    assert found["throughput"] == {
        "prompts_per_second": {"generate_2": 4 / 5, "generate_128": 4 / 26},
        "tokens_per_second": {"generate_2": 8 / 5, "generate_128": 4 * 128 / 26},
    }


def test_what_was_not_timed_is_left_open():
    found = summarise({"prefill": TURNS["prefill"]}, batch=4)

    assert found["seconds"] == {"prefill": 2.0, "generate_2": None, "generate_128": None}
    assert found["decode_tokens_per_second"] is found[FIRST] is None
    assert found["throughput"]["prompts_per_second"] == dict.fromkeys(
        ("generate_2", "generate_128")
    )
    compared = against(found, found, (OURS, BASE))
    assert compared["speedup"] == {
        "prefill": 1.0, FIRST: None, "generate_2": None, "generate_128": None,
    }  # fmt: skip
    assert compared["share_of_bound"] == {"prefill": 0.25, FIRST: None}


def test_a_speedup_is_compared_with_the_flops_that_are_saved():
    compared = against(summarise(TURNS, batch=4), summarise(slower(2), batch=4), (OURS, BASE))

    assert bounds_of(OURS, BASE) == (4.0, 2.5)  # 800 / 200, and 1000 / 400 with the tower
    assert compared["speedup"] == dict.fromkeys(
        ("prefill", FIRST, "generate_2", "generate_128"), 2.0
    )
    assert compared["share_of_bound"] == {"prefill": 0.5, FIRST: 0.8}
    assert compared["cpu_share_of_bound"] == {"prefill": 0.75, FIRST: pytest.approx(1.2)}


def test_a_gpu_has_no_cpu_time_to_compare():
    on_gpu = {"prefill": [Turn(2.0, None)]}
    found = summarise(on_gpu, batch=4)
    assert found["cpu_seconds"] == {"prefill": None}
    assert against(found, found, (OURS, BASE))["cpu_share_of_bound"]["prefill"] is None


def test_pairs_are_made_wherever_numbers_stand():
    assert paired({"a": 1, "b": {"c": [2, 3]}}, {"a": 4, "b": {"c": [5, 6]}}) == {
        "a": {"model": 1, "base": 4},
        "b": {"c": {"model": [2, 3], "base": [5, 6]}},
    }


def test_people_see_everyone_in_eighty_columns():
    ours, base = summarise(TURNS, batch=4), summarise(slower(2), batch=4)
    compared = against(ours, base, (OURS, BASE))
    result = {
        **{"measured": "a model", "visual_tokens": 576, "text_tokens": 64, "batch_size": 4},
        **{
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
            "repeats": 3,
            "omissions": ["Not all."],
        },
        **{"registers": 8, "drop_layer": 3, "product_rate": {"ratio": 0.76}},
        "flops": {"base": 800, "victor": 200, "bound": 4.0, "bound_with_tower": 2.5},
        **paired(ours, base),
        "cache_bytes": {"model": 10, "base": 40},
        **compared,
        "variants": [{"name": "pool:16@3", "flops": 300, "cache_bytes": 20, **ours, **compared}],
    }
    console = Console(width=80, record=True, file=None)
    with console.capture() as caught:
        console.print(table(result))
    lines = [line.split() for line in caught.get().splitlines()]

    assert ["base", "800", "40.0", "B", "4,000", "ms", "6,000", "ms", "12"] in lines
    assert ["victor:8@3", "200", "10.0", "B", "2,000", "ms", "3,000", "ms", "24"] in lines
    assert ["victor:8@3", *[f"2.00{TIMES}"] * 4, "0.50"] in lines
    assert ["pool:16@3", *[f"2.00{TIMES}"] * 4, "0.50"] in lines
    assert f"bound of the prefill 4.00{TIMES}, with the vision tower 2.50{TIMES}" in " ".join(
        caught.get().split()
    )
    assert "at 0.76 of the rate" in " ".join(caught.get().split())
    assert ["Not", "all."] in lines
    assert max(map(len, caught.get().splitlines())) <= 80
