"""What a training run consists of: the rows of each step, and what is trained at which rate."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from victorctl.collation import Batch, collate
from victorctl.data.batches import encode, padding_token
from victorctl.data.conversations import Row
from victorctl.errors import VictorError
from victorctl.sections import TrainSection

ELASTIC = 2**32 - 1  # tells this draw from those of the order and of questions, by epoch
AHEAD = 2  # batches that are made while a step runs
VECTORS = ("victor.registers.", "victor.offsets.")  # parameters that are states of registers


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


def choose_parameters(model: PreTrainedModel, settings: TrainSection) -> dict[str, nn.Parameter]:
    """Freeze the model but for what the rung trains, adding to it what the rung has and it lacks.

    What is trained is kept in float32, whatever the weights are.

    Returns:
        Name to parameter.
    """
    model.requires_grad_(False)
    text, victor = model.get_decoder(), model.victor
    alpha = settings.rank if settings.alpha is None else settings.alpha
    if settings.rung == "deep":
        _deepen(model)
        victor.offsets.requires_grad_(True)
    elif settings.rung == "register-lora":
        _adapt(model, {"rank": settings.rank, "alpha": alpha, "layers": settings.layers})
        victor.adapters.requires_grad_(True)
    elif settings.rung == "lora":
        early = victor.drop_layer if settings.layers == "early" else len(text.layers)
        targets = [
            f"layers.{index}.{name}"
            for index in range(early)
            for name, module in text.layers[index].named_modules()
            if isinstance(module, nn.Linear)
        ]
        config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets)
        inject_adapter_in_model(config, text)
    victor.registers.requires_grad_(True)
    own = {key: value for key, value in model.config.victor.items() if key != "elastic"}
    model.config.victor = own | ({"elastic": True} if settings.elastic else {})
    chosen = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in chosen.values():
        value.data = value.data.float()
    return chosen


def _deepen(model: PreTrainedModel) -> None:
    """Give the model offsets, or go on with those that it has.

    Raises:
        VictorError: If no layer could have any.
    """
    if model.config.victor.get("deep"):
        return
    if model.victor.drop_layer == 1:
        raise VictorError(
            "deep adds offsets before the layers from 1 to drop_layer - 1, and drop_layer is 1",
            fix="use --train registers, or convert with --drop-layer 2 or more",
        )
    model.victor.deepen(model.get_decoder().layers)
    _begin(model, model.victor.offsets)
    model.config.victor = {**model.config.victor, "deep": True}


def _begin(model: PreTrainedModel, added: nn.Module) -> None:
    """Put new modules where the model is, with their first values."""
    added.to(model.device)
    for module in added.modules():
        model._init_weights(module)


def _adapt(model: PreTrainedModel, wanted: dict[str, Any]) -> None:
    """Give the model adapters, or go on with those that it has.

    Raises:
        VictorError: If it has others.
    """
    has = model.config.victor.get("adapter")
    if has and has != wanted:
        raise VictorError(
            f"the model has adapters already, {has}, and the recipe asks for {wanted}",
            fix="set train.rank, train.alpha and train.layers to what it has, or start from a "
            "converted folder",
        )
    if has:
        return
    model.victor.adapt(model.get_decoder().layers, wanted)
    _begin(model, model.victor.adapters)
    model.config.victor = {**model.config.victor, "adapter": wanted}


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], settings: TrainSection
) -> torch.optim.AdamW:
    """Make AdamW with a group for registers and their offsets, whose rate may differ."""
    own = settings.register_learning_rate or settings.learning_rate
    vectors = [value for name, value in parameters.items() if name.startswith(VECTORS)]
    others = [value for name, value in parameters.items() if not name.startswith(VECTORS)]
    groups = [
        {"params": vectors, "peak": own},
        {"params": others, "peak": settings.learning_rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=settings.weight_decay
    )
