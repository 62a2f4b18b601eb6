"""The order of the data and the learning rate.

Faults planted and caught: a plan that starts each epoch in the same order.
"""

import pytest

from victorctl.data.conversations import open_data
from victorctl.recipe import TrainSection
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
