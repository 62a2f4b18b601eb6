"""What a training run consists of: the rows of each step, what is trained, the state on disk."""

import json
import math
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from victorctl import weights
from victorctl.data.batches import encode, padding_token
from victorctl.data.conversations import Row
from victorctl.distill import Batch, collate
from victorctl.errors import VictorError
from victorctl.files import locked, whole, write_whole
from victorctl.folders import explained
from victorctl.recipe import TrainSection

AHEAD = 2  # batches that are made while a step runs
ADAM = ("exp_avg", "exp_avg_sq")


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


def batches(plan: Plan, processor: ProcessorMixin, start: int) -> Iterator[Batch]:
    """Make the batches of steps start, start + 1, ... in a thread, a little ahead of the steps."""

    def make(number: int) -> Batch:
        rows = [encode(row, processor) for row in plan.step(number)]
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
    """Freeze the model but for what the rung trains, adding low-rank updates where it has them.

    What is trained is kept in float32, whatever the weights are.

    Returns:
        Name to parameter.
    """
    model.requires_grad_(False)
    text, victor = model.model.language_model, model.victor
    alpha = settings.rank if settings.alpha is None else settings.alpha
    if settings.rung == "register-lora":
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
    chosen = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in chosen.values():
        value.data = value.data.float()
    return chosen


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
    model.victor.adapt(model.model.language_model.layers, wanted)
    model.victor.adapters.to(model.device)
    for module in model.victor.adapters.modules():
        model._init_weights(module)
    model.config.victor = {**model.config.victor, "adapter": wanted}


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], settings: TrainSection
) -> torch.optim.AdamW:
    """Make AdamW with a group for the registers, whose rate may differ."""
    own = settings.register_learning_rate or settings.learning_rate
    registers = [value for name, value in parameters.items() if ".registers." in name]
    others = [value for name, value in parameters.items() if ".registers." not in name]
    groups = [
        {"params": registers, "peak": own},
        {"params": others, "peak": settings.learning_rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=settings.weight_decay
    )


@dataclass(frozen=True)
class State:
    """A run in progress, in a folder beside its output; it holds only what is trained.

    Args:
        folder: Where it lies; removed when the run is finished.
    """

    folder: Path

    @property
    def file(self) -> Path:
        """The latest checkpoint."""
        return self.folder / "state.safetensors"

    @property
    def description(self) -> Path:
        """What must not change between a run and its continuation."""
        return self.folder / "run.json"

    @property
    def lock(self) -> Path:
        """Held while a run is under way; beside the folder, which comes and goes."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse what cannot be continued, and what would be lost; changes nothing.

        Raises:
            VictorError: If another run is under way, there is nothing to resume or it is damaged,
                an interrupted run would be lost without `overwrite`, or the folder is not one of a
                run.
        """
        if self.lock.exists():
            with self._alone():
                pass
        if resume:
            if not (self.file.exists() and self.description.exists()):
                problem = f"{self.folder}: no checkpoint to resume"
                raise VictorError(problem, fix="leave --resume out")
            self._check_whole()
        elif self.file.exists() and not overwrite:
            raise VictorError(
                f"{self.folder}: holds an interrupted run",
                fix="add --resume to continue it, or --overwrite to start again",
            )
        elif self.folder.exists() and not self.description.exists():
            raise VictorError(
                f"{self.folder}: checkpoints belong here, and this was not written by victorctl",
                fix="move it away, or choose another --out",
            )

    def _check_whole(self) -> None:
        try:
            json.loads(self.description.read_text())
            with safe_open(self.file, "pt"):
                pass
        except (SafetensorError, ValueError) as error:
            raise VictorError(
                f"{self.folder}: damaged, perhaps by a power cut: {error}",
                fix="leave --resume out and add --overwrite, which starts again",
            ) from error

    @contextmanager
    def running(self, identity: dict[str, Any], *, resume: bool) -> Iterator[None]:
        """Hold the folder while the run is under way; without a checkpoint, nothing of it stays.

        Args:
            identity: What the run must share with the one that it continues.
            resume: Find the folder again, instead of making a new one.

        Raises:
            VictorError: If another run is under way, the run to resume was another one, or the
                folder cannot be made.
        """
        with self._alone():
            if resume:
                self._check_same(identity)
            else:
                with explained(self.folder):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self.folder.mkdir()
                    write_whole(self.description, json.dumps(identity, indent=2).encode())
            try:
                yield
            finally:
                if not self.file.exists():
                    self.finish()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs out."""
        with ExitStack() as stack:
            with explained(self.lock):
                self.lock.parent.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(self.lock))
            if not held:
                raise VictorError(
                    f"{self.folder}: another run is under way in this folder",
                    fix="wait for it to end, or choose another --out",
                )
            yield

    def _check_same(self, identity: dict[str, Any]) -> None:
        before = json.loads(self.description.read_text())
        changed = [key for key in identity if identity[key] != before.get(key)]
        if changed:
            said = "; ".join(f"{key} was {before.get(key)}, is {identity[key]}" for key in changed)
            raise VictorError(
                f"{self.folder}: another run lies here: {said}",
                fix="give the settings of that run, or leave --resume out and add --overwrite",
            )

    def save(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        log: Sequence[Mapping[str, float]],
    ) -> None:
        """Write a checkpoint after len(log) steps; it replaces the one before once it is whole.

        Raises:
            VictorError: If the disk is full; the checkpoint before stays.
        """
        tensors = {f"parameter.{name}": value for name, value in parameters.items()}
        for name, value in parameters.items():
            for moment in ADAM:
                tensors[f"{moment}.{name}"] = optimizer.state[value][moment]
        lines = "".join(json.dumps(entry) + "\n" for entry in log)
        instead = "start again with another --out"
        with explained(self.file, instead=instead), whole(self.file) as partial:
            weights.write_file(partial, tensors, {"log": lines})

    def restore(
        self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> list[dict[str, float]]:
        """Read the checkpoint back into the parameters and the optimizer, and return the log."""
        with safe_open(self.file, "pt") as tensors:
            log = [json.loads(line) for line in tensors.metadata()["log"].splitlines()]
            for name, value in parameters.items():
                value.data.copy_(tensors.get_tensor(f"parameter.{name}"))
                optimizer.state[value] = {
                    moment: tensors.get_tensor(f"{moment}.{name}").to(value.device, copy=True)
                    for moment in ADAM
                } | {"step": torch.tensor(float(len(log)))}
        return log

    def finish(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed = False


@contextmanager
def finish_the_step() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a wish to stop after the step; the second stops at once."""
    wish = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(number: int, frame: object) -> None:
        wish.pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield wish
    finally:
        signal.signal(signal.SIGINT, before)
