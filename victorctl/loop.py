"""The loop of a training run: steps, checkpoints on the way, and what is told of them."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from victorctl import checkpoint, weights
from victorctl.ahead import ahead
from victorctl.collation import Batch
from victorctl.distill import Distillation, Losses
from victorctl.errors import VictorError
from victorctl.logs import Told, telling
from victorctl.processes import Processes, whole_tensor
from victorctl.recipe import Run
from victorctl.resuming import State, finish_the_step
from victorctl.rungs import make_optimizer
from victorctl.runtime import progress, say
from victorctl.sections import TrainSection
from victorctl.training import Parts, learning_rate

Log = list[dict[str, float]]


@dataclass(frozen=True)
class Training:
    """What a training run consists of.

    Args:
        parts: Which rows each step sees; holds the plan, and with it the recipe's `train`.
        distillation: The loss; holds the model, and what is known of its teacher.
        parameters: What is trained, by name.
        state: Where checkpoints go.
        run: Where and on what.
    """

    parts: Parts
    distillation: Distillation
    parameters: dict[str, nn.Parameter]
    state: State
    run: Run

    @property
    def processes(self) -> Processes:
        """Of the run."""
        return self.parts.processes

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Surround what the model computes."""
        model, settings = self.distillation.model, self.parts.plan.settings
        with (
            checkpoint.fixes_of_shipped_file(),
            torch.autocast(model.device.type, torch.bfloat16, enabled=in_bfloat16(model, settings)),
        ):
            yield


class Stepper(NamedTuple):
    """What takes steps: the loss as all processes compute it, and the optimiser."""

    module: nn.Module
    optimizer: AdamW
    parameters: dict[str, nn.Parameter]


def dtype_of(network: PreTrainedModel) -> str:
    """Name the number format of the weights, "auto" resolved; what is trained is in float32."""
    return str(network.config.dtype).removeprefix("torch.")


def in_bfloat16(network: PreTrainedModel, settings: TrainSection) -> bool:
    """Tell whether arithmetic is in bfloat16 where weights are not.

    Because the recipe says so, or because the base has it and weights of its own are trained, which
    are in float32 then.
    """
    return settings.autocast == "bf16" or is_finer(network, settings)


def is_finer(network: PreTrainedModel, settings: TrainSection) -> bool:
    """Tell whether weights of a base in bfloat16 are trained, and so are in float32."""
    return settings.moves_teacher and dtype_of(network) == "bfloat16"


def train(training: Training) -> Log:
    """Run the steps that are left, and save checkpoints on the way.

    Returns:
        A line for every step, those before an interruption included.
    """
    run, state = training.run, training.state
    settings, processes = training.parts.plan.settings, training.processes
    stepper = _prepare(training)
    if settings.moves_teacher and training.distillation.known:
        _ask_before(training, stepper)
    log: Log = state.restore(stepper.parameters, stepper.optimizer) if run.resume else []
    told = Told(run.out, tuple(log), settings.model_dump())
    with (
        finish_the_step(patient=processes.count > 1) as wish,
        progress("finetune", settings.steps, quiet=run.quiet, done=len(log)) as bar,
        telling(run.log if processes.first else "none", told) as tell,
    ):
        for made in ahead(training.parts.make, range(len(log), settings.steps)):
            with _fitting(training, len(log)):
                log.append(_step(training, stepper, made, len(log)))
            tell(log[-1])
            bar.advance(text="loss {loss:.4f}  rate {learning_rate:.1e}".format(**log[-1]))
            done, stopped = len(log), processes.any(wish.pressed)
            if done % settings.checkpoint_every == 0 or stopped or done == settings.steps:
                _save(training, stepper, log)
            if stopped:
                say(
                    f"stopped and saved after {done} steps; finetune goes on from there with the "
                    "same settings and --resume",
                    quiet=run.quiet,
                )
                processes.close()  # where all are together
                wish.leave()
    return log


def _ask_before(training: Training, stepper: Stepper) -> None:
    """Let the teacher answer all that will be asked, as long as it is what it was."""
    settings, known = training.parts.plan.settings, training.distillation.known
    if known.places and training.state.has_asked(known.folder.name):  # before an interruption
        return
    device = next(iter(stepper.parameters.values())).device
    try:
        with progress("teacher", settings.steps, quiet=training.run.quiet) as bar:
            for number, made in enumerate(ahead(training.parts.make, range(settings.steps))):
                with _fitting(training, number), training.computing(), torch.no_grad():
                    for batch in made:
                        stepper.module(batch.to(device), ask=True)
                bar.advance()
    finally:
        known.flush()
    training.processes.wait()
    if training.processes.first:
        training.state.note_asked(known.folder.name)
    known.look_again()  # for what other processes have written


def _prepare(training: Training) -> Stepper:
    """Spread the model over the processes; where weights are cut up, others are trained."""
    distillation, settings = training.distillation, training.parts.plan.settings
    module = training.processes.prepare(distillation)
    if training.processes.sharded:
        distillation.together = training.processes.any
        distillation.each_alone = True  # FSDP frees weights that a prefix's keys still need
    there = dict(distillation.model.named_parameters())
    parameters = {name: there[name] for name in training.parameters}
    return Stepper(module, make_optimizer(parameters, settings), parameters)


def _save(training: Training, stepper: Stepper, log: Log) -> None:
    if training.distillation.known:
        training.distillation.known.flush()
    training.state.save(stepper.parameters, stepper.optimizer, log, write=training.processes.first)
    training.processes.wait()


@contextmanager
def _fitting(training: Training, done: int) -> Iterator[None]:
    """Let a full GPU be an error that says how a step needs less; the last checkpoint stays."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        settings = training.parts.plan.settings
        raise VictorError(
            f"step {done + 1} does not fit into the GPU's memory, with train.batch_size "
            f"{settings.batch_size} and train.questions {settings.questions}",
            fix=_needing_less(training),
        ) from error


def _needing_less(training: Training) -> str:
    """Say how a step needs less memory: what changes nothing learned, and goes on, comes first."""
    settings = training.parts.plan.settings
    less = []
    if 2 * settings.accumulate * training.processes.count <= settings.batch_size:
        less.append(f"--set train.accumulate={2 * settings.accumulate}")
    if not settings.checkpointing:
        less.append("--set train.checkpointing=true")
    if less and training.state.file.exists():
        return f"go on with --resume and {' or '.join(less)}"
    if not less and settings.questions > 1:
        less.append(f"--set train.questions={settings.questions // 2}")
    if dtype_of(training.distillation.model) == "float32":
        less.append("--dtype bf16")
    return f"start again with --overwrite and {' or '.join(less)}" if less else "use another GPU"


def _step(
    training: Training, stepper: Stepper, made: Sequence[Batch], done: int
) -> dict[str, float]:
    """Take one optimiser step after so many others, and return its line of the log."""
    plan, processes = training.parts.plan, training.processes
    settings, parameters = plan.settings, stepper.parameters.values()
    rate = learning_rate(done, settings)
    for group in stepper.optimizer.param_groups:
        group["lr"] = rate * group["peak"]
    victor = training.distillation.model.victor
    victor.use(plan.registers(done, victor.registers.weight.shape[0]))
    losses = _backward(training, stepper, made)
    for value in parameters:
        if value.grad is None:  # a step of text says nothing about the projector
            value.grad = torch.zeros_like(value)
    norm = whole_tensor(nn.utils.clip_grad_norm_(parameters, settings.clip))
    stepper.optimizer.step()
    stepper.optimizer.zero_grad()
    summed = processes.sum(losses.sum(dim=0))
    *means, length = torch.cat([summed, norm[None]]).tolist()  # waits for the device once
    for name, value in (("loss", means[0]), ("gradient's length", length)):
        if not math.isfinite(value):
            raise _broken(training, made, losses, done, f"the {name} is {value}")
    names = ("loss", *Losses._fields[1:])
    entry = dict(zip(names, means, strict=True))
    return {"step": done + 1, **entry, "learning_rate": rate * getattr(settings, settings.rate_key)}


def _backward(training: Training, stepper: Stepper, made: Sequence[Batch]) -> Tensor:
    """Add up the gradients of all parts of a step; return their losses [parts, kinds of loss]."""
    processes, distillation = training.processes, training.distillation
    device = next(iter(stepper.parameters.values())).device
    made = [batch.to(device) for batch in made]
    whole = processes.sum(torch.stack([distillation.sizes(batch) for batch in made]).sum(dim=0))
    found = []
    for place, batch in enumerate(made):
        with processes.adding(stepper.module, last=place == len(made) - 1):
            with training.computing():
                losses = stepper.module(batch, whole / processes.count)
            losses.total.backward()
        found.append(torch.stack(losses).detach() / processes.count)
    return torch.stack(found)


def _broken(
    training: Training, made: Sequence[Batch], losses: Tensor, done: int, problem: str
) -> VictorError:
    """Say that numbers are none any more, and keep the step's part in which it began."""
    settings, out = training.parts.plan.settings, training.run.out
    ended = (~losses[:, 0].isfinite()).nonzero().flatten().tolist()
    part = made[ended[0] if ended else 0]
    number = f"-{training.processes.number}" if training.processes.count > 1 else ""
    file = out.with_name(f"{out.name}.step-{done + 1}{number}.safetensors")
    rows = json.dumps([row.id for row in training.parts.plan.step(done)])
    weights.write_file(file, part.tensors(), {"rows": rows, "problem": problem})
    return VictorError(
        f"{problem} at step {done + 1}; {file.name} has what was read",
        fix=f"look whether its rows are as they should be; lower train.{settings.rate_key} (it is "
        f"{getattr(settings, settings.rate_key):g}), and start again with --overwrite",
    )
