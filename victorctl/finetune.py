"""The finetune stage: train a Victor model's registers, the model frozen, and write a new folder."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from victorctl import checkpoint, folders, lineage, plots
from victorctl.data.conversations import open_data
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.modeling_victor import PREFIX, WEIGHTS, read_header, write_config, write_indexes
from victorctl.recipe import Recipe, Run
from victorctl.runtime import progress, say, seed_everything, set_threads
from victorctl.teacher import TeacherCache
from victorctl.training import (
    Plan,
    State,
    batches,
    choose_parameters,
    finish_the_step,
    learning_rate,
    make_optimizer,
)

Log = list[dict[str, float]]
ENDS = 10  # steps that the reported first and last loss are means of


def finetune(model: Path, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Train what the recipe's rung trains, and write the trained model beside the one it came from.

    Args:
        model: A folder that `convert` or `finetune` wrote.
        recipe: Sections `train` and `data`, and the seed.
        run: Where and on what; `out` is needed.

    Returns:
        The keys of `finetune --json`.

    Raises:
        VictorError: If the data, the folder or the settings do not fit, or the loss stops being a number.
        KeyboardInterrupt: After Ctrl-C, when the step at hand is done and saved.
    """
    started = time.perf_counter()
    out, train = _output(model, recipe, run), recipe.train
    set_threads(run.threads)
    seed_everything(recipe.seed)
    rows = open_data(recipe.data.train, rows=recipe.data.rows)
    processor = checkpoint.load_processor(model)
    network = checkpoint.load(model, run)
    parameters = choose_parameters(network, train)
    result = {
        "out": str(out),
        "train": train.rung,
        "steps": train.steps,
        "trainable_parameters": sum(value.numel() for value in parameters.values()),
        "base_intact": train.rung != "lora" and lineage.base_intact(model),
    }
    if run.dry_run:
        return result
    parent = lineage.weights_sha256(model)
    state = State(out.with_name(f"{out.name}.training"), _identity(recipe, parent))
    state.begin(resume=run.resume, overwrite=run.overwrite)
    log = _train(
        network,
        parameters,
        Plan(rows, train, recipe.seed),
        processor,
        state,
        run,
        _teacher(recipe, run, model),
    )
    with folders.writing(out, overwrite=run.overwrite) as folder:
        _write(model, folder, network)
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
        )
    state.finish()
    losses = [entry["loss"] for entry in log]
    return result | {
        "loss": {"first": fmean(losses[:ENDS]), "last": fmean(losses[-ENDS:])},
        "seconds": time.perf_counter() - started,
    }


def _output(model: Path, recipe: Recipe, run: Run) -> Path:
    """Check what can be checked before anything is loaded."""
    if run.out is None:
        raise VictorError("finetune needs a folder to write", fix="add --out FOLDER")
    if recipe.data.train is None:
        raise VictorError("finetune needs data", fix="add --data demo, or --data FILE")
    if run.out.resolve() == model.resolve():
        raise VictorError(f"--out {run.out} is the model itself", fix="give another folder")
    folders.check_output(run.out, overwrite=run.overwrite)
    return run.out


def _identity(recipe: Recipe, parent: str) -> dict[str, Any]:
    """What a resumed run must share with the run it continues."""
    train = recipe.train.model_dump(exclude={"checkpoint_every", "teacher_cache"})
    return {"parent": parent, "seed": recipe.seed, "data": recipe.data.model_dump(), **train}


def _teacher(recipe: Recipe, run: Run, model: Path) -> TeacherCache | None:
    train = recipe.train
    if not train.teacher_cache or train.distill == 0:
        return None
    return TeacherCache(
        {
            "base": checkpoint.base_sha256(model),
            "top_k": train.top_k,
            "temperature": train.temperature,
            "autocast": train.autocast,
            "dtype": run.dtype,
            "device": run.device,
        }
    )


def _train(network, parameters, plan, processor, state, run, known) -> Log:  # noqa: ANN001, PLR0913
    """Run the steps that are left; checkpoints hold what is trained and the log."""
    train = plan.settings
    optimizer = make_optimizer(parameters, train)
    log: Log = state.restore(parameters, optimizer) if run.resume else []
    distillation = Distillation(network, train, known)
    device = next(iter(parameters.values())).device
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=train.autocast == "bf16")
    made = batches(plan, processor, len(log))
    with (
        finish_the_step() as wish,
        progress("finetune", train.steps, quiet=run.quiet, done=len(log)) as bar,
    ):
        for batch in made:
            rate = learning_rate(len(log), train)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            with mixed:
                losses = distillation(batch.to(device))
            if not torch.isfinite(losses.total):
                raise VictorError(
                    f"the loss is {losses.total.item()} at step {len(log)}",
                    fix=f"lower train.learning_rate (it is {train.learning_rate:g}) and start again",
                )
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), train.clip)
            optimizer.step()
            optimizer.zero_grad()
            entry = {
                name: value.item()
                for name, value in zip(("loss", *losses._fields[1:]), losses, strict=True)
            }
            log.append({"step": len(log) + 1, **entry, "learning_rate": rate * train.learning_rate})
            bar.advance(text=f"loss {entry['loss']:.4f}  rate {log[-1]['learning_rate']:.1e}")
            if len(log) % train.checkpoint_every == 0 or wish.pressed or len(log) == train.steps:
                if known:
                    known.flush()
                state.save(parameters, optimizer, log)
            if wish.pressed:
                say(
                    f"stopped and saved after {len(log)} steps; the same command with --resume goes on",
                    quiet=run.quiet,
                )
                raise KeyboardInterrupt
    return log


def _write(source: Path, folder: Path, network: PreTrainedModel) -> None:
    """Write the trained model: the source's files, with Victor's tensors and merged weights replaced."""
    checkpoint.copy_files(source, folder, link=True)
    merged = _merge(network)
    for file in checkpoint.weight_files(source):
        if names := _names(file, merged):
            tensors = load_file(file)
            for name, module in names.items():
                tensors[name] = merged[module].to(tensors[name].dtype).contiguous()
            (folder / file.name).unlink()  # a hard link: writing to it would change the source
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
    dtype = network.lm_head.weight.dtype
    own = {
        name: value.to(dtype).contiguous().cpu()
        for name, value in network.victor.state_dict().items()
    }
    save_file(
        {PREFIX + name: value for name, value in own.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    write_indexes(folder)
    write_config(folder, network.config.victor, network.native.__name__, type(network).__name__)


def _merge(network: PreTrainedModel) -> dict[str, Tensor]:
    """Merge low-rank updates of every position into their weights: module of the text model to weight."""
    merged = {}
    for name, module in network.model.language_model.named_modules():
        if isinstance(module, LoraLayer):
            module.merge()
            merged[name] = module.get_base_layer().weight.detach().cpu()
    return merged


def _names(file: Path, modules: Sequence[str]) -> dict[str, str]:
    """Find the weights of text modules in a file, under whatever prefix it gives them."""
    wanted = {f".{module}.weight": module for module in modules}
    found = {}
    for name in read_header(file):
        place = name.find(".layers.")
        if "language_model" in name and name[place:] in wanted:
            found[name] = wanted[name[place:]]
    return found
