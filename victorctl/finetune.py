"""The finetune stage: train a Victor model's registers, all else frozen, and write a new folder."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from victorctl import checkpoint, folders, foresight, lineage, plots, saving
from victorctl.collation import Batch
from victorctl.data.conversations import Rows, open_data
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.recipe import Recipe, Run
from victorctl.resuming import State, finish_the_step
from victorctl.rungs import choose_parameters, make_optimizer
from victorctl.runtime import progress, say, seed_everything, set_threads
from victorctl.teacher import TeacherCache
from victorctl.training import Plan, batches, learning_rate

Log = list[dict[str, float]]
BYTES_OF_STATE = 12  # of a checkpoint, for each parameter: itself and two moments, in float32
ENDS = 10  # steps that the reported first and last loss are means of


@dataclass(frozen=True)
class Training:
    """What a training run consists of.

    Args:
        plan: Which rows each step sees; holds the recipe's `train`.
        processor: Makes tensors of rows.
        distillation: The loss; holds the model, and what is known of its teacher.
        parameters: What is trained, by name.
        state: Where checkpoints go.
    """

    plan: Plan
    processor: ProcessorMixin
    distillation: Distillation
    parameters: dict[str, nn.Parameter]
    state: State


def finetune(model: Path, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Train what the recipe's rung trains, and write the trained model to a folder of its own.

    Args:
        model: A folder that `convert` or `finetune` wrote.
        recipe: Sections `train` and `data`, and the seed.
        run: Where and on what; `out` is needed.

    Returns:
        The keys of `finetune --json`.

    Raises:
        VictorError: If the data, the folder or the settings do not fit, another run writes there,
            the disk is full, or the loss stops being a number.
        KeyboardInterrupt: After Ctrl-C, when the step at hand is done and saved.
    """
    started = time.perf_counter()
    out, train = _output(model, recipe, run), recipe.train
    state = State(out.with_name(f"{out.name}.training"))
    state.check(resume=run.resume, overwrite=run.overwrite)
    set_threads(run.threads)
    seed_everything(recipe.seed)
    rows = _rows(recipe, run)
    processor = checkpoint.load_processor(model)
    network = _load(model, run)
    base = None if run.dry_run else checkpoint.hash_base(model)
    intact = lineage.base_intact(model, base)
    parameters = choose_parameters(network, train)
    result = {
        "out": str(run.out),
        "train": train.rung,
        "steps": train.steps,
        "trainable_parameters": sum(value.numel() for value in parameters.values()),
        "base_intact": train.keeps_base and intact,
    }
    folders.check_space(out, _bytes(model, out, network, state, result["trainable_parameters"]))
    if run.dry_run:
        plan = Plan(rows, train, recipe.seed)
        return result | {"estimate": foresight.of_run(network, parameters, plan, processor)}
    parent = lineage.weights_sha256(model, base)
    if train.has_teacher and not intact:
        say(
            "this folder's base weights are not known to be the unconverted model's; the teacher "
            "is what they predict from the whole picture",
            quiet=run.quiet,
        )
    known = _teacher(model, network, recipe, run, lineage.hash_of(base))
    training = Training(
        Plan(rows, train, recipe.seed),
        processor,
        Distillation(network, train, known),
        parameters,
        state,
    )
    with state.running(_identity(recipe, parent, rows, network), resume=run.resume):
        log = _train(training, run)
        with folders.writing(out, overwrite=run.overwrite) as folder:
            hashes = saving.save(model, folder, network)
            plots.loss_curve(log, folder / "loss.png")
            lines = "".join(json.dumps(entry) + "\n" for entry in log)
            (folder / "loss.jsonl").write_text(lines)
            lineage.add_stage(
                folder,
                command="finetune",
                settings={"train": train.model_dump(), "data": recipe.data.model_dump()},
                parent_sha256=parent,
                seed=recipe.seed,
                base_intact=result["base_intact"],
                known=hashes,
                details=_circumstances(network, rows),
            )
        state.finish()
    losses = [entry["loss"] for entry in log]
    ends = max(1, min(ENDS, len(losses) // 2))  # in a short run the two must not be the same
    return result | {
        "loss": {"first": fmean(losses[:ends]), "last": fmean(losses[-ends:])},
        "seconds": time.perf_counter() - started,
    }


def _output(model: Path, recipe: Recipe, run: Run) -> Path:
    """Check what can be checked before anything is loaded, and say where to write."""
    if run.out is None:
        raise VictorError("finetune needs a folder to write", fix="add --out FOLDER")
    if recipe.data.train is None:
        raise VictorError("finetune needs data", fix="add --data demo, or --data FILE")
    out = run.out.expanduser().resolve()
    checkpoint.read_victor_config(model)
    folders.check_outside(out, model)
    folders.check_output(out, overwrite=run.overwrite)
    return out


def _rows(recipe: Recipe, run: Run) -> Rows:
    """Open the data, without rows of text: no register could learn from them."""
    if recipe.data.train == "demo:test":
        raise VictorError(
            "demo:test holds the questions that models are measured with, not to be trained on",
            fix="train on --data demo",
        )
    rows = open_data(recipe.data.train, rows=recipe.data.rows)
    pictured = rows.with_pictures()
    if not pictured:
        raise VictorError(
            f"{recipe.data.train}: no row shows a picture, so registers have nothing to learn from",
            fix="train on data with pictures, named under image or images",
        )
    if (size := recipe.train.batch_size) > len(pictured):
        raise VictorError(
            f"train.batch_size is {size}, and the data has {len(pictured)} rows with pictures",
            fix=f"add --batch-size {len(pictured)}, or give more data",
        )
    if len(pictured) < len(rows):
        say(
            f"{len(rows) - len(pictured)} of {len(rows)} rows show no picture and are left out",
            quiet=run.quiet,
        )
    return pictured


def _load(model: Path, run: Run) -> PreTrainedModel:
    """Load the model, in a number format that can be trained in."""
    network = checkpoint.load(model, run)
    if network.dtype == torch.float16:
        raise VictorError(
            f"{model}: weights in float16, in which small gradients vanish",
            fix="add --dtype bf16, or --dtype fp32; the base's files stay as they are",
        )
    return network


def _bytes(model: Path, out: Path, network: PreTrainedModel, state: State, trained: int) -> int:
    """Count what must fit on the disk: a checkpoint, and beside it the next or the result."""
    one = trained * BYTES_OF_STATE
    there = state.file.stat().st_size if state.file.exists() else 0
    return max(0, one + max(one, saving.size(model, out, network)) - there)


def _identity(recipe: Recipe, parent: str, rows: Rows, network: PreTrainedModel) -> dict[str, Any]:
    """What a resumed run must share with the run it continues; it may go on on another device."""
    return {
        "parent": parent,
        "seed": recipe.seed,
        "data": recipe.data.model_dump(),
        "rows of the data": len(rows),
        "conversations of the data": rows.conversations,
        "SHA-256 of the data": rows.sha256,
        "dtype": _dtype(network),
        **recipe.train.model_dump(exclude={"checkpoint_every", "teacher_cache"}),
    }


def _teacher(
    model: Path, network: PreTrainedModel, recipe: Recipe, run: Run, base_sha256: str
) -> TeacherCache | None:
    """Open what is known of the unconverted model's predictions, if they are kept and suffice."""
    train = recipe.train
    if not train.teacher_cache or train.distill == 0 or train.hidden > 0:
        return None
    config = checkpoint.read_config(model)
    del config["victor"]
    return TeacherCache(
        {
            "base": base_sha256,
            "config": config,
            "top_k": train.top_k,
            "temperature": train.temperature,
            "autocast": train.autocast,
            "dtype": _dtype(network),
            "device": network.device.type,
            "attn": run.attn,
        }
    )


def _circumstances(network: PreTrainedModel, rows: Rows) -> dict[str, Any]:
    """Say what else the weights depend on, for whoever repeats the run."""
    device = network.device
    return {
        "data_sha256": rows.sha256 or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": _dtype(network),
        "attention": network.config.get_text_config()._attn_implementation,
        "threads": torch.get_num_threads(),
    }


def _dtype(network: PreTrainedModel) -> str:
    """Name the number format of the weights, "auto" resolved; what is trained is in float32."""
    return str(network.config.dtype).removeprefix("torch.")


def _train(training: Training, run: Run) -> Log:
    """Run the steps that are left, and save checkpoints on the way."""
    settings, state = training.plan.settings, training.state
    optimizer = make_optimizer(training.parameters, settings)
    log: Log = state.restore(training.parameters, optimizer) if run.resume else []
    by_runs = "image" in training.distillation.model.by_runs
    made = batches(training.plan, training.processor, len(log), by_runs=by_runs)
    with (
        finish_the_step() as wish,
        progress("finetune", settings.steps, quiet=run.quiet, done=len(log)) as bar,
    ):
        for batch in made:
            with _fitting(training, len(log)):
                log.append(_step(training, optimizer, batch, len(log)))
            bar.advance(text="loss {loss:.4f}  rate {learning_rate:.1e}".format(**log[-1]))
            done = len(log)
            if done % settings.checkpoint_every == 0 or wish.pressed or done == settings.steps:
                if training.distillation.known:
                    training.distillation.known.flush()
                state.save(training.parameters, optimizer, log)
            if wish.pressed:
                say(
                    f"stopped and saved after {done} steps; finetune goes on from there with the "
                    "same settings and --resume",
                    quiet=run.quiet,
                )
                raise KeyboardInterrupt
    return log


@contextmanager
def _fitting(training: Training, done: int) -> Iterator[None]:
    """Let a full GPU be an error that says how a step needs less; the last checkpoint stays."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        settings = training.plan.settings
        less = [
            f"{option}{value // 2}"
            for option, value in (
                ("--batch-size ", settings.batch_size),
                ("--set train.questions=", settings.questions),
            )
            if value > 1
        ]
        if _dtype(training.distillation.model) == "float32":
            less.append("--dtype bf16")
        fix = f"start again with --overwrite and {' or '.join(less)}" if less else "use another GPU"
        if training.state.file.exists():
            fix += "; the last checkpoint goes on with --resume only where more memory is free"
        raise VictorError(
            f"step {done + 1} does not fit into the GPU's memory, with train.batch_size "
            f"{settings.batch_size} and train.questions {settings.questions}",
            fix=fix,
        ) from error


def _step(
    training: Training, optimizer: torch.optim.Optimizer, batch: Batch, done: int
) -> dict[str, float]:
    """Take one optimiser step after so many others, and return its line of the log."""
    settings, parameters = training.plan.settings, training.parameters.values()
    rate = learning_rate(done, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["peak"]
    device = next(iter(parameters)).device
    victor = training.distillation.model.victor
    victor.use(training.plan.registers(done, len(victor.registers.weight)))
    with (
        checkpoint.fixes_of_shipped_file(),
        torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast == "bf16"),
    ):
        losses = training.distillation(batch.to(device))
    losses.total.backward()
    norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
    optimizer.step()
    optimizer.zero_grad()
    *means, length = torch.stack([*losses, norm]).tolist()  # waits for the device once, at the end
    for name, value in (("loss", means[0]), ("gradient's length", length)):
        if not math.isfinite(value):
            raise VictorError(
                f"the {name} is {value} at step {done + 1}",
                fix=f"lower train.learning_rate (it is {settings.learning_rate:g}), and start "
                "again with --overwrite",
            )
    names = ("loss", *losses._fields[1:])
    entry = dict(zip(names, means, strict=True))
    return {"step": done + 1, **entry, "learning_rate": rate * settings.learning_rate}
