"""What each step sees, whoever shares it, and the learning rate.

Faults planted and caught: a plan that starts each epoch in the same order; groups of like length
that come in the order of their lengths, or that lose a row; a part without pictures.
"""

from dataclasses import replace

import numpy as np
import pytest

from tests.tiny import tiny_conversation, tiny_processor, tiny_rows
from victorctl.data.batches import IGNORED
from victorctl.data.conversations import Row, open_data
from victorctl.processes import Processes
from victorctl.sections import TrainSection
from victorctl.training import Parts, Plan, learning_rate


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


def of_length(letters):
    """A row of text whose answer has so many letters."""
    said = tiny_conversation(images=0)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "x" * letters}]}
    return Row(str(letters), (), (replace(said, messages=(said.messages[0], answer)),))


def test_rows_of_like_length_share_a_step_and_every_row_still_comes_once_an_epoch():
    lengths = [int(n) for n in np.random.default_rng(0).permutation(np.arange(1, 25))]
    rows = [of_length(n) for n in lengths]
    plan = Plan(rows, TrainSection(batch_size=5, group_by_length=True), seed=3)
    steps = [[int(row.id) for row in plan.step(number)] for number in range(20)]  # 4.2 epochs
    seen = [n for step in steps for n in step]

    for epoch in range(4):
        assert sorted(seen[24 * epoch : 24 * epoch + 24]) == sorted(lengths)
    # of an epoch's 24 rows, 20 make whole steps: of 5 that follow each other in length
    whole = [step for number, step in enumerate(steps) if number % 5 != 4]
    assert all(max(step) - min(step) <= 8 for step in whole)
    starts = [min(step) for step in steps[:4]]
    assert starts != sorted(starts)  # yet the steps themselves come in no order
    assert plan.step(7) == Plan(rows, plan.settings, seed=3).step(7)


class Of(Processes):
    """One of several processes, without the others."""

    def __init__(self, number, count):
        self.__dict__.update(accelerator=None, sharded=False, _number=number, _count=count)

    number = property(lambda self: self._number)
    count = property(lambda self: self._count)


def texts(count):
    return [Row(f"text-{n}", (), (tiny_conversation(images=0, seed=n),)) for n in range(count)]


@pytest.mark.parametrize(("pictured", "said"), [(5, 7), (1, 11), (0, 12)])
def test_processes_and_parts_share_a_step_and_each_reads_a_picture_where_one_does(pictured, said):
    rows = [*texts(said), *tiny_rows(pictured, questions=1)]
    plan = Plan(rows, TrainSection(batch_size=12, accumulate=2), seed=0)
    made = [
        batch
        for number in range(2)
        for batch in Parts(plan, tiny_processor(), Of(number, 2)).make(0)
    ]

    whole = Plan(rows, TrainSection(batch_size=12), seed=0)
    (alone,) = Parts(whole, tiny_processor(), Processes()).make(0)
    counts = [batch.counts for batch in made]  # of rows that count
    assert sorted(n for part in counts for n in part) == sorted(alone.counts)
    assert {len(part) for part in counts} == {3}
    shown = [bool(batch.prefix.shape[1]) for batch in made]
    assert shown == [pictured > 0] * 4
    silent = sum(int((batch.labels == IGNORED).all(dim=1).sum()) for batch in made)
    assert silent == (max(0, 4 - pictured) if pictured else 0)
