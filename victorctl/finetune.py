"""The finetune stage: train what a rung trains of a Victor model, and write a new folder."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from victorctl import checkpoint, folders, foresight, lineage, logs, plots, saving
from victorctl.data.mixtures import open_training
from victorctl.data.rows import Rows
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.loop import Log, Training, dtype_of, in_bfloat16, is_finer
from victorctl.loop import train as run_steps
from victorctl.processes import Processes
from victorctl.recipe import Recipe, Run
from victorctl.resuming import State
from victorctl.rungs import choose_parameters
from victorctl.runtime import peak_memory_on, resolve, say, seed_everything, set_threads
from victorctl.sections import TrainSection
from victorctl.teacher import TeacherCache
from victorctl.training import Parts, Plan

BYTES_OF_STATE = 12  # of a checkpoint, for each parameter: itself and two moments, in float32
WAYS = {"checkpoint_every", "teacher_cache", "accumulate", "checkpointing"}
"""Settings that say how, and not what is learned: a resumed run may have others."""
ENDS = 10  # steps that the reported first and last loss are means of


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
        SystemExit: After SIGTERM, likewise.
    """
    started = time.perf_counter()
    processes = Processes.start(run, unused=recipe.train.kind == "full")
    run = processes.place(run)
    out, train = _output(model, recipe, run), recipe.train
    state = State(out.with_name(f"{out.name}.training"))
    if processes.first:
        state.check(resume=run.resume, overwrite=run.overwrite)
    set_threads(run.threads)
    seed_everything(recipe.seed)
    rows = _rows(recipe, run)
    _check_parts(train, processes.count)
    processor = checkpoint.load_processor(model)
    network = _load(model, replace(run, device="cpu") if processes.sharded else run)
    base = None if run.dry_run else processes.from_first(partial(checkpoint.hash_base, model))
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
        found = foresight.of_run(network, parameters, plan, processor)
        processes.close()
        return result | {"estimate": found}
    parent = lineage.weights_sha256(model, base)
    if train.has_teacher and not intact:
        say(
            "this folder's base weights are not known to be the unconverted model's; the teacher "
            "is what they predict from the whole picture",
            quiet=run.quiet,
        )
    known = _teacher(model, network, recipe, run, lineage.hash_of(base))
    training = Training(
        Parts(Plan(rows, train, recipe.seed), processor, processes, "image" in network.by_runs),
        Distillation(network, train, known),
        parameters,
        state,
        replace(run, out=out),
    )
    _tell_differences(recipe, network, run)
    holding = state.running(_identity(recipe, parent, rows, network), resume=run.resume)
    with _leaving(state, run), holding if processes.first else nullcontext():
        processes.wait()
        log = run_steps(training)
        if processes.first:
            record = partial(
                lineage.add_stage,
                command="finetune",
                settings={"train": train.model_dump(), "data": recipe.data.model_dump()},
                parent_sha256=parent,
                seed=recipe.seed,
                base_intact=result["base_intact"],
                details=_circumstances(network, rows) | {"processes": processes.count},
            )
            _write(model, training, log, record)
            state.finish()
        processes.wait()
    told = _told(training, log)
    processes.close()
    return result | told | {"seconds": time.perf_counter() - started}


def _write(model: Path, training: Training, log: Log, record: Callable[..., None]) -> None:
    """Write the folder of the trained model, and what is to be known of it."""
    run, network = training.run, training.distillation.model
    if training.processes.sharded:
        network = _put_together(model, run, training)
    with folders.writing(run.out, overwrite=run.overwrite) as folder:
        hashes = saving.save(model, folder, network)
        plots.loss_curve(log, folder / "loss.png")
        lines = "".join(json.dumps(entry) + "\n" for entry in log)
        (folder / "loss.jsonl").write_text(lines)
        record(folder, known=hashes)


def _told(training: Training, log: Log) -> dict[str, Any]:
    """Say what training has come to, in all processes together."""
    distillation, processes = training.distillation, training.processes
    device = next(distillation.parameters()).device
    losses = [entry["loss"] for entry in log]
    ends = max(1, min(ENDS, len(losses) // 2))  # in a short run the two must not be the same
    spent = torch.tensor([distillation.asked, distillation.seconds], device=device)
    asked, seconds = processes.sum(spent).tolist()
    return {
        "loss": {"first": fmean(losses[:ends]), "last": fmean(losses[-ends:])},
        "teacher": {"questions": round(asked), "seconds": seconds / processes.count},
        "peak_memory_bytes": peak_memory_on(device),
    }


@contextmanager
def _leaving(state: State, run: Run) -> Iterator[None]:
    """Say after Ctrl-C that nothing was saved, where that is so."""
    try:
        yield
    except KeyboardInterrupt:
        if not state.file.exists():
            say("stopped before anything was saved: start again, without --resume", quiet=run.quiet)
        raise


def _tell_differences(recipe: Recipe, network: PreTrainedModel, run: Run) -> None:
    """Say what converting has decided, where the recipe would have it otherwise."""
    wanted = recipe.victor.model_dump(include=recipe.victor.model_fields_set, exclude_none=True)
    for name, value in wanted.items():
        if network.config.victor.get(name, value) != value:
            say(
                f"victor.{name} is {value}, and the model was converted with "
                f"{network.config.victor[name]}, which stays",
                quiet=run.quiet,
            )


def _put_together(model: Path, run: Run, training: Training) -> PreTrainedModel:
    """Load the model again where training has left its weights in parts, and what was trained."""
    network = _load(model, replace(run, device="cpu"))
    training.state.restore(choose_parameters(network, training.parts.plan.settings))
    return network


def _output(model: Path, recipe: Recipe, run: Run) -> Path:
    """Check what can be checked before anything is loaded, and say where to write."""
    if run.out is None:
        raise VictorError("finetune needs a folder to write", fix="add --out FOLDER")
    if recipe.data.train is None and not recipe.data.mix:
        raise VictorError("finetune needs data", fix="add --data demo, or --data FILE")
    out = run.out.expanduser().resolve()
    logs.check(run.log, out, replace=run.resume or run.overwrite)
    checkpoint.read_victor_config(model)
    folders.check_outside(out, model)
    folders.check_output(out, overwrite=run.overwrite)
    return out


def _rows(recipe: Recipe, run: Run) -> Rows:
    """Open the data; without rows of text where only registers learn, which have no part in it."""
    rows = open_training(recipe.data, seed=recipe.seed, quiet=run.quiet)
    pictured = rows.with_pictures() if recipe.train.keeps_base else rows
    if not rows.pictured:
        raise VictorError(
            f"{recipe.data.train or 'data.mix'}: no row shows a picture, so registers have "
            "nothing to learn from",
            fix="train on data with pictures, named under image or images",
        )
    if (size := recipe.train.batch_size) > len(pictured):
        raise VictorError(
            f"train.batch_size is {size}, and the data has {len(pictured)} rows"
            f"{' with pictures' if recipe.train.keeps_base else ''}",
            fix=f"add --batch-size {len(pictured)}, or give more data",
        )
    if len(pictured) < len(rows):
        say(
            f"{len(rows) - len(pictured)} of {len(rows)} rows show no picture and are left out",
            quiet=run.quiet,
        )
    return pictured


def _check_parts(train: TrainSection, processes: int) -> None:
    """Refuse to cut a step into more parts than it has pictures."""
    parts = processes * train.accumulate
    if train.batch_size < parts:
        fewer = ", or lower train.accumulate" if train.accumulate > 1 else ""
        raise VictorError(
            f"train.batch_size is {train.batch_size}, to be shared by {processes} processes, each "
            f"with train.accumulate {train.accumulate}",
            fix=f"add --batch-size {parts} or more{fewer}",
        )


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
        "dtype": dtype_of(network),
        **recipe.train.model_dump(exclude=WAYS),
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
            "autocast": in_bfloat16(network, train),
            "float32": train.rung if is_finer(network, train) else None,
            "dtype": dtype_of(network),
            "device": resolve(run)[0].type,
            "attn": run.attn,
        }
    )


def _circumstances(network: PreTrainedModel, rows: Rows) -> dict[str, Any]:
    """Say what else the weights depend on, for whoever repeats the run."""
    device = network.device
    return {
        "data_sha256": rows.sha256 or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": dtype_of(network),
        "attention": network.config.get_text_config()._attn_implementation,
        "threads": torch.get_num_threads(),
    }
