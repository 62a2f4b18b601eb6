"""What a training run would need: of the model and data at hand, or of a configuration alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from victorctl import cost
from victorctl.collation import Batch, collate
from victorctl.cost import Shape
from victorctl.data.batches import encode, padding_token
from victorctl.estimate import Load, Method
from victorctl.features import Outline
from victorctl.machines import Task, estimate
from victorctl.memory import HALF, SINGLE
from victorctl.sections import MERGED, TrainSection

if TYPE_CHECKING:
    from victorctl.training import Plan

OPENING, TEXT, ANSWER = 8, 64, 16  # tokens before a picture, after it, and of these in answers
LABEL = (
    "An estimate, not a measurement: formulas from the model's sizes, compared with what PyTorch "
    "counts on small models."
)


def of_run(
    network: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    plan: "Plan",
    processor: ProcessorMixin,
) -> dict[str, Any]:
    """Estimate what training would need of every machine, from the rows of the first step.

    Args:
        network: A Victor model.
        parameters: Those that are trained.
        plan: Which rows the steps see.
        processor: The model's.

    Returns:
        See `machines.estimate`.
    """
    train, shape = plan.settings, cost.shape_of(network.config)
    by_runs = "image" in network.victor.by_runs
    rows = [encode(row, processor, by_runs=by_runs) for row in plan.step(0)]
    load = load_of(collate(rows, padding_token(processor)), network.config.image_token_id)
    method = method_of(
        shape,
        train,
        registers=len(network.victor.registers.weight),
        drop_layer=network.victor.drop_layer,
        stored=network.config.dtype.itemsize,
        trained=sum(value.numel() for value in parameters.values()),
        parameters=sum(value.numel() for value in network.parameters()),
    )
    asked = _asked(train, -(-plan.rows.conversations // load.questions))
    said = (
        f"Steps read as much as the first: {load.rows} pictures with {load.prefix} tokens to their "
        f"end, {load.questions} questions of {load.text} tokens, {load.answers} of them in answers."
    )
    task = Task(shape, method, load, train.accumulate, train.steps, asked)
    return estimate(task, [LABEL, said, *_notes(train, asked)])


def of_config(
    config: PreTrainedConfig, train: TrainSection, seen: Outline, *, visual: int, victor: Any
) -> dict[str, Any]:
    """Estimate what training would need of every machine, from a configuration alone.

    Args:
        config: Of a model, converted or not.
        train: The recipe's `train`.
        seen: How large the model's parts are.
        visual: Visual tokens of a picture.
        victor: `registers` and `drop_layer`.

    Returns:
        See `machines.estimate`.
    """
    shape, rows, questions = cost.shape_of(config), train.batch_size, train.questions
    asks = rows * questions
    load = Load(rows, OPENING, visual, asks, TEXT, asks * ANSWER, rows * seen.tiles)
    registers, k = victor["registers"], victor["drop_layer"]
    added = _added(shape, train, registers, k)
    base = (seen.text if train.kind == "full" else 0) + train.with_projector * seen.projector
    method = method_of(
        shape,
        train,
        registers=registers,
        drop_layer=k,
        stored=shape.value_bytes,
        trained=added + base,
        parameters=seen.parameters + added,
    )
    said = (
        f"Each picture is read with {questions} questions, as train.questions says, of {TEXT} "
        f"tokens after it, {ANSWER} of them in answers."
    )
    asked = _asked(train, train.steps)
    task = Task(shape, method, load, train.accumulate, train.steps, asked)
    return estimate(task, [LABEL, said, *_notes(train, asked)])


def load_of(batch: Batch, image: int) -> Load:
    """Measure a batch; `image` is the placeholder's token id."""
    visual = int((batch.prefix == image).sum(dim=1).max())
    pixels = batch.images.get("pixel_values", torch.empty(0, 1, 1, 1))
    return Load(
        rows=len(batch.prefix),
        opening=batch.prefix.shape[1] - visual,
        visual=visual,
        questions=len(batch.row),
        text=batch.suffix.shape[1],
        answers=sum(batch.counts),
        tiles=pixels.shape[:-3].numel(),
    )


def method_of(  # noqa: PLR0913
    shape: Shape,
    train: TrainSection,
    *,
    registers: int,
    drop_layer: int,
    stored: int,
    trained: int,
    parameters: int,
) -> Method:
    """Say how a recipe trains a model; the arguments are those of `Method`."""
    own = SINGLE if train.kind == "full" else stored
    autocast = train.autocast == "bf16"
    return Method(
        rung=train.kind,
        registers=registers,
        drop_layer=drop_layer,
        rank=train.rank if _adapted(shape, train, drop_layer) else 0,
        adapted=_adapted(shape, train, drop_layer),
        trained=trained,
        parameters=parameters,
        stored=stored,
        computed=HALF if autocast else own,
        autocast=autocast,
        projector=train.with_projector,
        checkpointing=train.checkpointing,
        teacher="live" if train.has_teacher else "none",
        has_distill=train.distill > 0,
    )


def _adapted(shape: Shape, train: TrainSection, drop_layer: int) -> int:
    """Count the layers with low-rank updates."""
    if train.kind not in (*MERGED, "register-lora"):
        return 0
    early = train.kind == "lora-early" or train.layers == "early"
    return drop_layer if early else shape.layers


def _added(shape: Shape, train: TrainSection, registers: int, drop_layer: int) -> int:
    """Count the parameters that a rung adds to a model that was never trained."""
    vectors = drop_layer if train.kind == "deep" else 1
    adapted = _adapted(shape, train, drop_layer)
    updates = cost.adapter_flops(shape, 1, rank=train.rank, layers=adapted) // 2
    return vectors * registers * shape.hidden + updates


def _asked(train: TrainSection, first: int) -> int:
    """Count the steps in which the teacher is asked; `first` of them see what none has seen."""
    if not train.has_teacher:
        return 0
    kept = train.teacher_cache and train.hidden == 0
    return min(first, train.steps) if kept else train.steps


def _notes(train: TrainSection, asked: int) -> list[str]:
    """Say when the teacher is asked, and what of the recipe is not counted."""
    notes = []
    if train.has_teacher:
        notes.append(f"The teacher is asked in {asked:,} of {train.steps:,} steps.")
    if train.hidden > 0:
        notes.append("The states that train.hidden matches are not counted.")
    if train.dora:
        notes.append("What train.dora adds is not counted.")
    return notes
