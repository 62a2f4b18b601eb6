"""Methods beside Victor: the same questions, the same weights, the same mean tokens per layer."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from victorctl import checkpoint, cost, lineage, measures, plots, standings
from victorctl.answering import BASE, Contestant
from victorctl.asking import Asking, opening
from victorctl.contestants import NO_BASE, Field, check_base, enter
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
    settings,
)
from victorctl.files import write_whole
from victorctl.findings import Finding, mean_interval, mean_score
from victorctl.folders import check_report, writing
from victorctl.measures import Load, entering
from victorctl.methods.base import Spec
from victorctl.methods.seeing import patches
from victorctl.notebook import Notebook
from victorctl.processes import Processes
from victorctl.questions import prepare
from victorctl.recipe import Recipe, Run
from victorctl.runtime import resolve, say, seed_everything, set_threads
from victorctl.sections import CompareSection
from victorctl.tasks import Task, check_asked, open_tasks
from victorctl.timing import PREFILL, prefills, speed
from victorctl.variants import VICTOR
from victorctl.ways import VICTOR_SOURCE, Aim, Models, Way, chosen

REPORT = "compare.json"


@dataclass(frozen=True)
class Comparing:
    """Everything that a comparison is made of.

    Args:
        evaluation: What is asked, of whom, and how.
        aims: Every method at every budget, in the order of the budgets.
    """

    evaluation: Evaluation
    aims: list[Aim]

    @property
    def ways(self) -> dict[str, Way]:
        """Everybody who is asked, once each, by name."""
        return {aim.way.name: aim.way for aim in self.aims}

    @property
    def field(self) -> Field:
        """The model and its base."""
        return self.evaluation.field

    @property
    def recipe(self) -> Recipe:
        """Sections `eval` and `compare`, and the seed."""
        return self.evaluation.recipe

    @property
    def everyone(self) -> dict[str, Contestant]:
        """The base, and every way."""
        others = {name: way.contestant for name, way in self.ways.items()}
        return {BASE: self.field.base.contestant(), **others}


def compare(model: Path, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Bring methods to the same budgets, and measure what each keeps and what it costs.

    Args:
        model: A folder that `convert` or `finetune` wrote.
        recipe: Sections `eval` (what is asked) and `compare`, and the seed.
        run: Where and on what. `out` is `MODEL/compare` if not given; `resume` goes on with a
            comparison that was interrupted.

    Returns:
        The keys of `compare --json`.

    Raises:
        VictorError: If there is no such method or setting, or the data, the folder or the base do
            not fit.
    """
    started = time.perf_counter()
    check_asked(recipe.eval)
    if run.base == NO_BASE:
        raise VictorError("--base none: methods act on the base's weights", fix="leave it out")
    checkpoint.read_victor_config(model)
    names = chosen(recipe.compare, checkpoint.load_config(model))
    plain = {"baselines": False, "registers": None}  # ways of their own
    recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update=plain)})
    check_base(recipe, run)
    out = run.out or model / "compare"
    check_report(out, REPORT, "a comparison")
    notebook = Notebook(out.resolve().with_name(f"{out.resolve().name}.answers"))
    resume = notebook.check(run, out / REPORT)
    set_threads(run.threads)
    resolve(run)
    seed_everything(recipe.seed)
    tasks = open_tasks(recipe.eval, quiet=run.quiet)
    check_scored(tasks)
    say(f"hashing and loading {model}", quiet=run.quiet)
    hashes = checkpoint.hash_base(model)
    field = enter(model, recipe, run, hashes)
    section = recipe.compare
    aims = list(_models(field, tasks, recipe).aims(names, section.budgets, section.settings))
    whole = Comparing(
        Evaluation(model, recipe, run, run, out, tasks, field, hashes, Processes()), aims
    )
    with leaving(notebook, run), notebook.running(_identity(whole), resume=resume):
        findings = _ask(whole, notebook)
        result = _measure(whole, findings)
        result["seconds"] = time.perf_counter() - started
        _write(whole, result)
        notebook.finish()
    return result


def _models(field: Field, tasks: Sequence[Task], recipe: Recipe) -> Models:
    """Find out what budgets are solved for: the visual tokens of the first picture.

    Raises:
        VictorError: If no base's weights are there for methods to act on, or no picture.
    """
    if field.base.native:
        raise VictorError(
            f"{field.base.name}: methods act on the base's weights inside a Victor model, and this "
            "is none",
            fix="give --base the folder that `victorctl convert` made, or leave --base out",
        )
    asked = [one for task in tasks for one in task.questions]
    pictures = [len(one.row.images) for one in asked]
    if not any(pictures):
        fix = "ask about pictures: --data demo:test"
        raise VictorError("no question has a picture, so there is nothing to spend", fix=fix)
    first = next(one for one in asked if one.row.images)
    with opening():
        shown = prepare([first], field.greedy.processor, pictures=True)
    (size,) = shown.sizes
    tiles = shown.pictures[0]["pixel_values"].shape[:-3].numel() // size.images
    layers = field.model.config.get_text_config().num_hidden_layers
    visual = size.visual // size.images
    return Models(
        field.model,
        field.base.model,
        Spec(visual, layers),
        Spec(patches(field.model.config) if tiles > 1 else visual, layers),
        tiles,
        fmean(pictures),
        recipe.seed,
    )


def _identity(whole: Comparing) -> dict[str, Any]:
    """What a resumed comparison must share with the one it continues."""
    own = {
        name: None if way.own is None else way.own.model_dump(mode="json")
        for name, way in whole.ways.items()
    }
    section = whole.recipe.compare
    return identity(whole.evaluation) | {
        "methods": list(section.methods),
        "budgets": list(section.budgets),
        "settings of methods": hashlib.sha256(json.dumps(own).encode()).hexdigest()[:12],
    }


def _ask(whole: Comparing, notebook: Notebook) -> list[Finding]:
    """Put all questions to the base and to every way."""
    field, section = whole.field, whole.recipe.eval
    found = []
    for task in whole.evaluation.tasks:
        known = known_answers(field, section, task.longest)
        quiet = whole.evaluation.run.quiet
        asking = Asking(
            whole.everyone, field.greedy, section.batch_size, task.longest, known, quiet=quiet
        )
        with fitting(section.batch_size):
            answers = asking.ask_on(task.name, task.questions, notebook)
        found.append(Finding(task, answers, whole.recipe.seed))
    return found


def _measure(whole: Comparing, findings: Sequence[Finding]) -> dict[str, Any]:
    """Turn answers into numbers, and measure speeds."""
    folder = whole.evaluation.out
    spent = {name: _spent(whole, way, findings) for name, way in whole.ways.items()}
    for name, way in whole.ways.items():
        _warn_of_plan(way, spent[name]["mean_visual_tokens"])
    base = _spent(whole, None, findings)
    seconds = _speeds(whole)
    rows = [_row(aim, spent[aim.way.name], seconds, findings) for aim in whole.aims]
    accuracy = mean_score(findings, next(iter(whole.ways)))["base"]
    return {
        "questions": sum(len(finding.task.asked) for finding in findings),
        "base": {"accuracy": accuracy, **base, "seconds": seconds.get(BASE)},
        "rows": rows,
        "standings": standings.sentences(rows, findings),
        "plot": str(folder / "pareto.png") if any(row["kept"] for row in rows) else None,
        "weights_sha256": lineage.weights_sha256(whole.evaluation.folder, whole.evaluation.hashes),
        "settings": {
            **settings(whole.evaluation),
            **whole.recipe.compare.model_dump(mode="json"),
            "command": command(whole.evaluation, "compare", _asked_for(whole.recipe.compare)),
        },
    }


def _asked_for(section: CompareSection) -> list[str]:
    """Write section `compare` as options."""
    budgets = (b if b == "auto" else f"{b:g}" for b in section.budgets)
    words = ["--methods", ",".join(section.methods), "--budgets", ",".join(budgets)]
    for name, own in section.settings.items():
        for key, value in own.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            words += ["--set", f"compare.settings.{name}.{key}={shown}"]
    return words


def _warn_of_plan(way: Way, counted: float) -> None:
    """Say if a method that can be brought to a budget spent something else than it plans."""
    if way.own is None or way.own.knob is None or Aim(way.mean, way).reached(counted):
        return
    planned = f"planned {way.mean:.1f} visual tokens per layer and spent {counted:.1f}"
    say(f"warning: {way.name} {planned}: pictures differ in size, or `plan` is wrong", quiet=False)


def _spent(whole: Comparing, way: Way | None, findings: Sequence[Finding]) -> dict[str, Any]:
    """Average what a question costs: of methods as it was counted while they acted."""
    each = [_spent_on(whole, way, finding) for finding in findings]
    return {key: fmean(one[key] for one in each) for key in each[0]}


def _spent_on(whole: Comparing, way: Way | None, finding: Finding) -> dict[str, Any]:
    shape, sizes = cost.shape_of(whole.field.base.model.config), finding.answers.sizes
    k, registers = shape.layers, 0  # the base's
    if way is not None and way.method == VICTOR:
        k, registers = way.settings["layer"], way.settings["registers"]
    counted = finding.answers.entered.get(way.name) if way else None
    if counted is None:
        counted = [entering(shape.layers, k, size, registers) for size in sizes]
    loads = [Load(tuple(own), size.text) for own, size in zip(counted, sizes, strict=True)]
    found = measures.spend(shape, loads)
    if registers:
        victor, images = whole.field.model.config.victor, fmean(size.images for size in sizes)
        found["prefill_flops"] += measures.adapter_flops(shape, victor, registers * images)
    return found


def _row(
    aim: Aim,
    spent: Mapping[str, Any],
    seconds: Mapping[str, Mapping[str, float]],
    findings: Sequence[Finding],
) -> dict[str, Any]:
    way, score = aim.way, mean_score(findings, aim.way.name)
    times, base = seconds.get(way.name, {}), seconds.get(BASE, {})
    own = way.own
    return {
        "method": way.method,
        "budget": aim.budget,
        "reached": aim.reached(spent["mean_visual_tokens"]),
        **spent,
        "accuracy": score["model"],
        "kept": measures.share(**score),
        "interval": mean_interval(findings, way.name),
        **{f"{name}_speedup": base[name] / times[name] if name in times else None
           for name in standings.SPEEDS},
        "settings": dict(way.settings),
        "stage": "layers" if own is None else own.stage,
        "source": VICTOR_SOURCE if own is None else own.source,
        "unverified": [] if own is None else list(own.unverified),
        "name": way.name,
    }  # fmt: skip


def _speeds(whole: Comparing) -> dict[str, dict[str, float]]:
    """Time everybody by turns: the prefill, and answers of two lengths."""
    section, field = whole.recipe.eval, whole.field
    if section.repeats == 0:
        return {}
    asked = [one for task in whole.evaluation.tasks for one in task.questions if one.row.images]
    asked = asked[: min(SEVERAL, section.batch_size)]
    everyone = whole.everyone
    seeing = {name: who for name, who in everyone.items() if who.pictures}
    several = prepare(asked, field.greedy.processor, pictures=True)
    one = prepare(asked[:1], field.greedy.processor, pictures=True)
    with fitting(section.batch_size):
        by_name = speed(
            seeing, one=one, several=several, greedy=field.greedy, repeats=section.repeats,
            quiet=whole.evaluation.run.quiet,
        )  # fmt: skip
        found = {name: {what: of[name] for what, of in by_name.items()} for name in seeing}
        if blind := {name: who for name, who in everyone.items() if not who.pictures}:
            texts = prepare(asked, field.greedy.processor, pictures=False)
            timed = prefills(
                {BASE: everyone[BASE], **blind}, {True: several, False: texts},
                repeats=section.repeats,
            )  # fmt: skip
            ratio = found[BASE][PREFILL] / timed[BASE]  # by turns with the base, as the others were
            found |= {name: {PREFILL: timed[name] * ratio} for name in blind}
    return found


def _write(whole: Comparing, result: Mapping[str, Any]) -> None:
    """Write the numbers and the plot."""
    say("writing the comparison", quiet=whole.evaluation.run.quiet)
    with writing(whole.evaluation.out, overwrite=True) as folder:
        text = json.dumps({"schema": "victorctl/compare/1", **result}, indent=1)
        write_whole(folder / REPORT, f"{text}\n".encode())
        if result["plot"]:
            figures = [plots.pareto(result, plots.Palette()) for _ in range(2)]
            write_whole(folder / "pareto.png", plots.png(figures[0]))
            write_whole(folder / "pareto.svg", plots.svg(figures[1], "pareto").encode())
