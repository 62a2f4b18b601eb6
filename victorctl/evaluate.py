"""The eval stage: quality and cost of a model beside its base, on the same questions."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from victorctl import checkpoint, cost, lineage, report
from victorctl.asking import Answers, Asking
from victorctl.contestants import check_base, enter
from victorctl.errors import VictorError
from victorctl.evaluation import (
    SEVERAL,
    Evaluation,
    check_scored,
    command,
    fitting,
    identity,
    known_answers,
    leaving,
    positions_of,
    settings,
)
from victorctl.findings import Finding, differences, predictions, quality
from victorctl.folders import check_report, writing
from victorctl.notebook import Notebook
from victorctl.processes import Processes
from victorctl.recipe import Recipe, Run
from victorctl.runtime import resolve, say, seed_everything, set_threads
from victorctl.spending import baseline, costs, mean_costs, speeds
from victorctl.tasks import Task, check_asked, open_tasks

PATIENCE = timedelta(days=30)  # shares of a long evaluation do not end together


def evaluate(model: Path, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Ask a model and its base the same questions, and report what they answer and what it costs.

    Args:
        model: A folder that `convert` or `finetune` wrote.
        recipe: Section `eval`, and the seed.
        run: Where and on what. `out` is `MODEL/eval` if not given; `base` is a folder or Hub id to
            compare with, or "none"; `resume` goes on with an evaluation that was interrupted.

    Returns:
        The keys of `eval --json`, and `settings`. Of several processes, the first one's; the others
        return nothing.

    Raises:
        VictorError: If the data, the folder or the base do not fit.
    """
    started = time.perf_counter()
    out = _output(model, recipe, run)
    set_threads(run.threads)
    processes = Processes.start(run, patience=PATIENCE)
    _check_whole(processes)
    place = out.resolve()
    notebook = Notebook(place.with_name(f"{place.name}.answers"))
    resume = processes.first and notebook.check(run, out / "report.json")
    typed, run = run, processes.place(run)
    resolve(run)
    seed_everything(recipe.seed)
    tasks = open_tasks(recipe.eval, quiet=run.quiet)
    check_scored(tasks)
    if recipe.eval.data == "demo":
        say("warning: demo is what models are trained on; --data demo:test is not", quiet=run.quiet)
    say(f"hashing and loading {model}", quiet=run.quiet)
    hashes = processes.from_first(partial(checkpoint.hash_base, model))
    field = enter(model, recipe, run, hashes)
    whole = Evaluation(model, recipe, typed, run, out, tasks, field, hashes, processes)
    holding = notebook.running(identity(whole), resume=resume)
    with leaving(notebook, run), holding if processes.first else nullcontext():
        processes.wait()
        findings = _ask(whole, Notebook(notebook.folder, process=processes.number))
        processes.close()
        if not processes.first:
            return {}
        result = _measure(whole, findings) | {"seconds": time.perf_counter() - started}
        _write(whole, findings, result)
        notebook.finish()
    return result


def _output(model: Path, recipe: Recipe, run: Run) -> Path:
    """Check what can be checked before anything is loaded; an earlier report may be replaced."""
    check_asked(recipe.eval)
    checkpoint.read_victor_config(model)
    check_base(recipe, run)
    out = run.out or model / "eval"
    check_report(out, "report.json", "a report")
    return out


def _check_whole(processes: Processes) -> None:
    """Refuse to cut the weights into parts: answers are written by whole models."""
    if processes.sharded:
        raise VictorError(
            "the accelerate configuration asks for FSDP, and eval holds the model in each process",
            fix="use one for several GPUs: victorctl recipes copy accelerate/ddp",
        )


def _ask(whole: Evaluation, notebook: Notebook) -> list[Finding]:
    """Put all tasks to everybody; only the first process learns the answers."""
    field, asked, found = whole.field, whole.recipe.eval, []
    lengths = {task.longest for task in whole.tasks}
    known = {length: known_answers(field, asked, length) for length in lengths}
    for task in whole.tasks:
        if len(whole.tasks) > 1:
            say(f"{task.title}: {len(task.asked)} questions", quiet=whole.run.quiet)
        asking = Asking(
            field.contestants,
            field.greedy,
            asked.batch_size,
            task.longest,
            known[task.longest],
            whole.processes,
            whole.run.quiet,
        )
        with fitting(asked.batch_size):
            answers = asking.ask_on(task.name, task.questions, notebook)
        found.append(Finding(task, answers, whole.recipe.seed))
        if answers is not None:
            _warn_of_length(whole, task, answers)
    return found


def _warn_of_length(whole: Evaluation, task: Task, answers: Answers) -> None:
    """Say if prompts were longer than the model was made for."""
    most = positions_of(whole.field)
    long = max(size.visual + size.text for size in answers.sizes) + task.longest
    if most is not None and long > most:
        what = f"{task.title}: up to {long:,} tokens with the answer, and the model is made for"
        say(f"warning: {what} {most:,} (max_position_embeddings)", quiet=False)


def _measure(whole: Evaluation, findings: Sequence[Finding]) -> dict[str, Any]:
    """Turn answers into numbers, and measure speeds."""
    field, recipe = whole.field, whole.recipe
    asked = [question for task in whole.tasks for question in task.questions]
    several = min(SEVERAL, recipe.eval.batch_size)
    timed = [question for question in asked if question.row.images][:several] or asked[:several]
    with fitting(recipe.eval.batch_size):
        speed = speeds(field, timed, recipe.eval.repeats, quiet=whole.run.quiet)
    faster = speed.pop("ways")
    found = quality(findings)
    for finding in findings:
        if finding.task.name in found["benchmarks"]:
            tokens = costs(field, finding.answers.sizes)["mean_visual_tokens"]
            found["benchmarks"][finding.task.name]["mean_visual_tokens"] = tokens
    return {
        **found,
        "limit": recipe.eval.limit,
        **mean_costs(field, findings),
        "omissions": list(cost.shape_of(field.model.config).omissions),
        **speed,
        "baselines": {
            name: baseline(field, name, findings) | {"speedup": faster.get(name, {})}
            for name in field.ways
        },
        "report": str(whole.out / "report.html"),
        "weights_sha256": lineage.weights_sha256(whole.folder, whole.hashes),
        "settings": settings(whole)
        | {
            "base_answers_known": sum(finding.answers.cached for finding in findings),
            "speed_batch_size": len(timed),
            "command": command(whole),
        },
    }


def _write(whole: Evaluation, findings: Sequence[Finding], result: dict[str, Any]) -> None:
    """Write the report."""
    say("writing the report", quiet=whole.run.quiet)
    shown = differences(findings, whole.recipe.eval.differences, whole.recipe.seed)
    with writing(whole.out, overwrite=True) as folder:
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            for line in predictions(findings):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        report.write(result, shown, folder)
