"""An evaluation: what it is made of, what a continuation must share, how it is described."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from victorctl import checkpoint, lineage
from victorctl.base_answers import BaseAnswers
from victorctl.contestants import Field
from victorctl.errors import VictorError
from victorctl.measures import Marked
from victorctl.notebook import Notebook
from victorctl.processes import Processes
from victorctl.recipe import Recipe, Run
from victorctl.runtime import say, versions
from victorctl.sections import EvalSection
from victorctl.tasks import Task
from victorctl.weights import sha256

WAYS = ("data", "data_dir", "base_cache", "batch_size", "differences", "repeats")
"""Keys of section `eval` that change no answer, or by rounding alone."""


SEVERAL = 16  # questions answered at once where speed is measured


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation is made of.

    Args:
        folder: Of the model.
        recipe: Section `eval`, and the seed.
        typed: Where and on what, as it was asked for.
        run: The same for this process.
        out: Folder of the report.
        tasks: What is asked.
        field: Who is asked.
        hashes: Of the model's base's files.
        processes: All that ask.
    """

    folder: Path
    recipe: Recipe
    typed: Run
    run: Run
    out: Path
    tasks: list[Task]
    field: Field
    hashes: dict[str, str]
    processes: Processes


def dtype_of(field: Field) -> str:
    """Name the number format of the model's weights."""
    return str(field.model.dtype).removeprefix("torch.")


def positions_of(field: Field) -> int | None:
    """Tell how many tokens the language model was made for, where its configuration says so."""
    return getattr(field.model.config.get_text_config(), "max_position_embeddings", None)


def attention_of(field: Field) -> str:
    """Name the attention that the language model computes with."""
    return field.model.config.get_text_config()._attn_implementation


def identity(whole: Evaluation) -> dict[str, Any]:
    """What a resumed evaluation must share with the one it continues, as JSON gives it back."""
    base = whole.field.base
    shared = {
        "model": lineage.weights_sha256(whole.folder, whole.hashes),
        "base": base.identity["sha256"] if base else None,
        "SHA-256 of the data": {task.name: task.sha256 for task in whole.tasks},
        "questions": {task.name: len(task.asked) for task in whole.tasks},
        "seed": whole.recipe.seed,
        "dtype": dtype_of(whole.field),
        "device": whole.field.model.device.type,
        "attention": attention_of(whole.field),
        **whole.recipe.eval.model_dump(exclude=set(WAYS)),
    }
    return json.loads(json.dumps(shared))


def settings(whole: Evaluation) -> dict[str, Any]:
    """Say what was measured, how and with what; of paths only the last part."""
    field, recipe, model = whole.field, whole.recipe, whole.field.model
    victor, device = model.config.victor, model.device
    trained = [
        stage["settings"].get("train", {}).get("rung")
        for stage in lineage.read_lineage(whole.folder)["stages"]
        if stage["command"] == "finetune"
    ]
    asked = recipe.eval.model_dump(exclude={"registers"})  # of which the model knows the number
    for key in ("data", "data_dir"):
        asked[key] = _without_folder(asked[key])
    return {
        "model": whole.folder.resolve().name,
        "base": field.base.name if field.base else None,
        "base_intact": lineage.base_intact(whole.folder, whole.hashes),
        "base_sha256": field.base.identity["sha256"] if field.base else None,
        "train": trained[-1] if trained else None,
        **{key: victor[key] for key in ("registers", "drop_layer", "positions")},
        **asked,
        "data_sha256": {task.name: task.sha256 for task in whole.tasks if task.sha256},
        "seed": recipe.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": dtype_of(field),
        "attention": attention_of(field),
        "threads": torch.get_num_threads(),
        "processes": whole.processes.count,
        "versions": versions(),
    }


def command(whole: Evaluation, name: str = "eval", more: Sequence[str] = ()) -> str:
    """Write the command that repeats this, with everything that is not at its default.

    Args:
        whole: What was asked.
        name: Of the command.
        more: Options of its own.
    """
    run, base = whole.typed, whole.field.base
    asked = _asked(whole.recipe.eval, whole.folder.resolve().parent)
    words = ["victorctl", name, whole.folder.resolve().name, *asked, *more]
    words += ["--seed", str(whole.recipe.seed)]
    if run.base:
        words += ["--base", base.name if base else run.base]
    for name in ("device", "dtype", "attn", "threads"):
        if getattr(run, name) != getattr(Run, name):
            words += [f"--{name}", str(getattr(run, name))]
    if whole.processes.count > 1:
        words += ["--processes", str(whole.processes.count)]
    return shlex.join(words)


def _asked(section: EvalSection, place: Path) -> list[str]:
    """Write what of section `eval` is not at its default, as it is typed in a folder."""
    words = []
    for key in ("data", "data_dir"):
        if (value := getattr(section, key)) is not None:
            words += [f"--{key.replace('_', '-')}", _seen_from(place, value)]
    if section.benchmarks:
        words += ["--benchmarks", ",".join(section.benchmarks)]
    plain = type(section)().model_dump()
    for key, value in section.model_dump(exclude={"data", "data_dir", "benchmarks"}).items():
        if value != plain[key]:
            words += ["--set", f"eval.{key}={json.dumps(value)}"]
    return words


def _seen_from(place: Path, spec: str) -> str:
    """Write a path as it is typed in a folder; of one outside of it only the last part."""
    inside = Path(spec).exists() and Path(spec).resolve().is_relative_to(place)
    return str(Path(spec).resolve().relative_to(place)) if inside else _without_folder(spec)


def _without_folder(spec: str | None) -> str | None:
    return Path(spec).name if spec is not None and Path(spec).exists() else spec


def known_answers(field: Field, section: EvalSection, longest: int) -> BaseAnswers | None:
    """Find what the base answered before, where that is kept.

    Args:
        field: Whose base.
        section: Says whether it is.
        longest: Tokens of the longest answer.
    """
    if field.base is None or not section.base_cache:
        return None
    model = field.base.model
    return BaseAnswers(
        {
            **field.base.identity,
            "dtype": dtype_of(field),
            "device": model.device.type,
            "attention": model.config.get_text_config()._attn_implementation,
            "longest": longest,
            "stop": sorted(field.greedy.stop),
            "versions": {name: versions()[name] for name in ("torch", "transformers")},
            "code": None if field.base.native else sha256(checkpoint.CODE),
        }
    )


@contextmanager
def fitting(batch_size: int) -> Iterator[None]:
    """Let a full GPU be an error that says how to need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise VictorError(
            f"questions answered at once, {batch_size}, do not fit into the GPU's memory",
            fix=f"add --batch-size {batch_size // 2}, and --resume to keep what was answered"
            if batch_size > 1
            else "use another GPU",
        ) from error


@contextmanager
def leaving(notebook: Notebook, run: Run) -> Iterator[None]:
    """Say after Ctrl-C how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if notebook.exists:
            say("stopped; what was answered is kept: add --resume to go on", quiet=run.quiet)
        raise


def check_scored(tasks: Sequence[Task]) -> None:
    """Refuse questions that cannot be scored, however they are answered: too few of a benchmark.

    Raises:
        VictorError: If there are such.
    """
    for task in tasks:
        asked = [*task.asked]
        if Marked.of(task.scorer, asked, [""] * len(asked)).share is None:
            raise VictorError(
                f"{task.title}: {len(asked)} questions, and they do not make a score",
                fix="ask more of them: all of its data, and a larger --limit if there is one",
            )
