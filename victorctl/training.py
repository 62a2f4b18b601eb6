"""What each step of a training run sees, and how fast it learns."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from transformers import ProcessorMixin

from victorctl.collation import Batch, collate
from victorctl.data.batches import encode, padding_token
from victorctl.data.conversations import Row
from victorctl.sections import TrainSection

ELASTIC = 2**32 - 1  # tells this draw from those of the order and of questions, by epoch
AHEAD = 2  # batches that are made while a step runs


@dataclass(frozen=True)
class Plan:
    """Which rows and questions each step sees; seed and step alone decide, so a run can be resumed.

    Rows come in a new order each epoch; of a row with more questions than are asked, each epoch
    draws some.

    Args:
        rows: The data; every row has a picture.
        settings: The recipe's `train`.
        seed: Of the order.
    """

    rows: Sequence[Row]
    settings: TrainSection
    seed: int

    def step(self, number: int) -> list[Row]:
        """Choose the rows of a step, counted from 0, each with the questions to ask."""
        size, count = self.settings.batch_size, len(self.rows)
        places = (divmod(place, count) for place in range(number * size, (number + 1) * size))
        return [self._ask(epoch, int(self._order(epoch)[place])) for epoch, place in places]

    def registers(self, number: int, most: int) -> int:
        """Draw how many registers a step uses: as often 1, as 2 or 3, as 4 to 7, and so on."""
        if not self.settings.elastic:
            return most
        draw = np.random.default_rng((self.seed, ELASTIC, number)).random()
        return min(most, int(2 ** (draw * (math.log2(most) + 1))))

    def _order(self, epoch: int) -> np.ndarray:
        return _permutation(self.seed, epoch, len(self.rows))

    def _ask(self, epoch: int, number: int) -> Row:
        row, limit = self.rows[number], self.settings.questions
        if len(row.conversations) <= limit:
            return row
        draw = np.random.default_rng((self.seed, epoch, number))
        chosen = sorted(draw.permutation(len(row.conversations))[:limit])
        return replace(row, conversations=tuple(row.conversations[index] for index in chosen))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def batches(
    plan: Plan, processor: ProcessorMixin, start: int, *, by_runs: bool = False
) -> Iterator[Batch]:
    """Make the batches of steps start, start + 1, ... in a thread, a little ahead of the steps.

    Args:
        plan: Says which rows.
        processor: The model's.
        start: First step, counted from 0.
        by_runs: See `encode`.
    """

    def make(number: int) -> Batch:
        rows = [encode(row, processor, by_runs=by_runs) for row in plan.step(number)]
        return collate(rows, padding_token(processor))

    with ThreadPoolExecutor(1) as pool:
        pending = [
            pool.submit(make, number)
            for number in range(start, min(start + AHEAD, plan.settings.steps))
        ]
        for number in range(start + AHEAD, plan.settings.steps + AHEAD):
            batch = pending.pop(0).result()
            if number < plan.settings.steps:
                pending.append(pool.submit(make, number))
            yield batch


def learning_rate(step: int, settings: TrainSection) -> float:
    """Share of the highest rate at a step: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, settings.steps - rise)))
