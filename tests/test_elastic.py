"""One training for any number of registers: how many each step uses, and measuring fewer."""

import dataclasses

import pytest

from tests.tiny import VISUAL_TOKENS, tiny_data, tiny_llava
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.recipe import Run, load_recipe
from victorctl.sections import TrainSection
from victorctl.training import Plan

QUIET = Run(device="cpu", quiet=True)
K, LAYERS, N = 2, 6, VISUAL_TOKENS


def settings(data, *more):
    made = ["victor.registers=3", "victor.drop_layer=2", "convert.verify=none"]
    asked = [f"eval.data={data}", "eval.max_new_tokens=3", "eval.repeats=0"]
    return load_recipe(None, settings=[*made, *asked, *more])


def test_without_elastic_every_step_uses_all_registers():
    plan = Plan([], TrainSection(), seed=1)
    assert {plan.registers(step, 16) for step in range(20)} == {16}


def test_elastic_uses_few_registers_as_often_as_many_and_the_same_after_a_restart():
    drawn = [
        Plan([], TrainSection(elastic=True), seed=1).registers(step, 16) for step in range(500)
    ]
    counts = [sum(low <= count < 2 * low for count in drawn) for low in (1, 2, 4, 8, 16)]

    assert set(drawn) == set(range(1, 17))
    assert min(counts) > 70
    assert max(counts) < 130
    plan = Plan([], TrainSection(elastic=True), seed=1)
    assert [plan.registers(step, 16) for step in (300, 7)] == [drawn[300], drawn[7]]
    assert drawn != [Plan([], TrainSection(elastic=True), 2).registers(n, 16) for n in range(500)]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_elastic_draws_every_number_that_there_is(most):
    plan = Plan([], TrainSection(elastic=True), seed=0)
    assert {plan.registers(step, most) for step in range(300)} == set(range(1, most + 1))


def test_fewer_registers_are_measured_on_demand_with_a_warning(tmp_path, capsys):
    source, data = tiny_llava(tmp_path / "source"), tiny_data(tmp_path / "data")
    model = tmp_path / "model"
    convert(str(source), recipe=settings(data), run=dataclasses.replace(QUIET, out=model))

    found = evaluate(model, recipe=settings(data, "eval.registers=1"), run=QUIET)

    assert "was not trained for fewer registers (train.elastic)" in capsys.readouterr().err
    assert found["settings"]["registers"] == 1
    assert "--set eval.registers=1" in found["settings"]["command"]
    tokens = ((N + 1) * K + 1 * (LAYERS - K)) / LAYERS
    assert found["mean_visual_tokens"]["model"] == pytest.approx(tokens)

    with pytest.raises(VictorError, match="99"):  # there are no more
        evaluate(model, recipe=settings(data, "eval.registers=99"), run=QUIET)
    assert "warning" not in capsys.readouterr().err
