"""What each step of a training run sees, and how fast it learns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import ProcessorMixin

from victorctl.collation import Batch, collate
from victorctl.data import formats
from victorctl.data.batches import encode, padding_token
from victorctl.data.conversations import Row
from victorctl.processes import Processes, deal, mute
from victorctl.sections import TrainSection

ELASTIC = 2**32 - 1  # tells this draw from those of the order and of questions, by epoch
GROUPED = 2**32 - 2  # and this one
STEPS_IN_GROUP = 50  # whose rows are sorted by length together


@dataclass(frozen=True)
class Plan:
    """Which rows and questions each step sees; seed and step alone decide, so a run can be resumed.

    Rows come in a new order each epoch; of a row with more questions than are asked, each epoch
    draws some. How many processes share a step, and in how many parts, changes nothing.

    Args:
        rows: The data.
        settings: The recipe's `train`.
        seed: Of the order.
    """

    rows: Sequence[Row]
    settings: TrainSection
    seed: int
    orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

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
        if epoch not in self.orders:
            self.orders.pop(epoch - 2, None)
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
            grouped = self._grouped(epoch, order) if self.settings.group_by_length else order
            self.orders[epoch] = grouped
        return self.orders[epoch]

    def _grouped(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """Bring rows of like length into the same steps, and the steps into an order of their own.

        Those are grouped that lie near each other anyway; what the epoch before has left of a step
        is filled up first, and stays as it was.
        """
        size = self.settings.batch_size
        lead = -epoch * len(self.rows) % size
        draw, found = np.random.default_rng((self.seed, GROUPED, epoch)), [order[:lead]]
        for start in range(lead, len(order), size * STEPS_IN_GROUP):
            group = order[start : start + size * STEPS_IN_GROUP]
            group = np.array(sorted(group, key=lambda number: length(self.rows[int(number)])))
            whole = len(group) - len(group) % size
            steps = group[:whole].reshape(-1, size)
            found += [*draw.permutation(steps), group[whole:]]
        return np.concatenate(found)

    def _ask(self, epoch: int, number: int) -> Row:
        row, limit = self.rows[number], self.settings.questions
        if len(row.conversations) <= limit:
            return row
        draw = np.random.default_rng((self.seed, epoch, number))
        chosen = sorted(draw.permutation(len(row.conversations))[:limit])
        return replace(row, conversations=tuple(row.conversations[index] for index in chosen))


def length(row: Row) -> tuple[int, int]:
    """Foretell how long a row is without opening its pictures: how many, and its letters."""
    said = (turn for conversation in row.conversations for turn in conversation.messages)
    return len(row.images), sum(len(formats.text_of(turn)) for turn in said)


@dataclass(frozen=True)
class Parts:
    """Makes this process's batches of a step, one for each part of it.

    Args:
        plan: Says which rows.
        processor: The model's.
        processes: Of the run.
        by_runs: See `encode`.
    """

    plan: Plan
    processor: ProcessorMixin
    processes: Processes
    by_runs: bool = False

    def make(self, number: int) -> list[Batch]:
        """Make the batches of a step, counted from 0."""
        rows = self.plan.step(number)
        rows = deal(rows, [bool(row.images) for row in rows])
        sample = rows[0] if rows[0].images else None
        parts, own = self.plan.settings.accumulate, self.processes.share(rows)
        return [self._batch(own[part::parts], sample) for part in range(parts)]

    def _batch(self, rows: Sequence[Row], sample: Row | None) -> Batch:
        encoded = [encode(row, self.processor, by_runs=self.by_runs) for row in rows]
        if sample is not None and not any(row.images for row in rows):
            encoded.append(mute(encode(sample, self.processor, by_runs=self.by_runs)))
        return collate(encoded, padding_token(self.processor))


def learning_rate(step: int, settings: TrainSection) -> float:
    """Share of the highest rate at a step: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, settings.steps - rise)))
