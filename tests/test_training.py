"""The order of the data, what is trained, and the learning rate.

Faults planted and caught: a plan that starts each epoch in the same order; offsets that are drawn
again, that learn at the rate of everything else, or that another rung trains.
"""

import pytest

from tests.victor_models import victor_llava
from victorctl.data.conversations import open_data
from victorctl.errors import VictorError
from victorctl.rungs import choose_parameters, make_optimizer
from victorctl.sections import TrainSection
from victorctl.training import Plan, learning_rate


def test_a_plan_sees_every_row_once_an_epoch_in_an_order_of_its_own():
    rows = open_data("demo", rows=5)
    plan = Plan(rows, TrainSection(batch_size=2, questions=3), seed=1)
    seen = [row for step in range(5) for row in plan.step(step)]  # 10 rows: two epochs
    names = [row.id for row in seen]

    assert sorted(names[:5]) == sorted(names[5:]) == [row.id for row in rows]
    assert names[:5] != names[5:]
    assert {len(row.conversations) for row in seen} == {3}
    first, second = (
        next(row for row in part if row.id == "train-0") for part in (seen[:5], seen[5:])
    )
    assert first.conversations != second.conversations
    assert [row.id for row in plan.step(3)] == names[6:8]


def test_the_rate_rises_then_falls_to_nothing():
    settings = TrainSection(steps=10, warmup=0.2)
    rates = [learning_rate(step, settings) for step in range(10)]

    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.05


def test_deep_gives_the_registers_offsets_that_are_zero_and_trains_nothing_else():
    model = victor_llava(drop_layer=3)

    chosen = choose_parameters(model, TrainSection(rung="deep"))

    offsets = ["victor.offsets.1.weight", "victor.offsets.2.weight"]
    assert list(chosen) == ["victor.registers.weight", *offsets]
    assert not any(chosen[name].any() for name in offsets)
    assert model.config.victor["deep"] is True


def test_deep_goes_on_with_the_offsets_that_there_are_and_other_rungs_leave_them_alone():
    model = victor_llava(drop_layer=3, deep=True)
    before = model.victor.offsets["2"].weight.clone()

    assert len(choose_parameters(model, TrainSection(rung="deep"))) == 3
    assert model.victor.offsets["2"].weight.equal(before)
    for rung in ("registers", "register-lora"):
        chosen = choose_parameters(model, TrainSection(rung=rung))
        assert not any("offsets" in name for name in chosen), rung
    assert model.config.victor["deep"] is True


def test_deep_needs_a_layer_between_the_first_and_the_drop():
    sentence = r"deep adds .* drop_layer is 1\n  fix: use --train registers, or .*--drop-layer 2"
    with pytest.raises(VictorError, match=sentence):
        choose_parameters(victor_llava(drop_layer=1), TrainSection(rung="deep"))


def test_registers_and_offsets_learn_at_one_rate_and_all_else_at_another():
    settings = TrainSection(rung="register-lora", learning_rate=1, register_learning_rate=2)
    model = victor_llava(deep=True)
    parameters = choose_parameters(model, settings)
    parameters["victor.offsets.1.weight"] = model.victor.offsets["1"].weight

    groups = make_optimizer(parameters, settings).param_groups

    rates = {id(value): group["peak"] for group in groups for value in group["params"]}
    assert {name: rates[id(value)] for name, value in parameters.items()} == {
        name: 1 if "adapters" in name else 2 for name in parameters
    }
