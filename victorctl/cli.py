"""The commands: each reads its arguments, calls one function and prints what it returns."""

from pathlib import Path
from typing import Annotated

import typer

from victorctl import groups, logs, looks, recipes
from victorctl.options import (
    Attn,
    Base,
    Changes,
    Device,
    DryRun,
    Dtype,
    Json,
    Model,
    Out,
    Overwrite,
    Processes,
    RecipeFile,
    Report,
    Seed,
    Source,
    Threads,
    print_version,
    setting,
)
from victorctl.output import hint, sheet, show, to_open
from victorctl.recipe import Recipe, Run, load_recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def held_out(settings: Recipe) -> list[str]:
    """Say what to measure a freshly trained model on, as options of eval."""
    if settings.eval.benchmarks:
        return ["--benchmarks", ",".join(settings.eval.benchmarks)]
    usual = "demo:test" if settings.data.train == "demo" else "DATA"
    return ["--data", settings.eval.data or usual]


@app.callback()
def start(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Summarise an image into a few registers, and drop the rest: Victor for LLaVA models.

    Example: victorctl demo
    """


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; victor-demo if not given.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps; the recipe's if not given.")
    ] = None,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    attn: Attn = Run.attn,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; one if not given, as the model is small.")
    ] = None,
    json: Json = False,
) -> None:
    """Convert, fine-tune and measure a small model that comes along, in a few minutes.

    Example: victorctl demo --out victor-demo
    """
    run = Run(out=out, device=device, dtype=dtype, attn=attn, threads=threads)
    from victorctl.demo import demo as stage
    from victorctl.report import table

    result = stage(run=run, steps=steps)
    following = hint("convert", "llava-hf/llava-1.5-7b-hf", "--out", "victor-7b")
    show(
        "demo", result, as_json=json, table=lambda found: table(found["eval"]), following=following
    )


@app.command()
def convert(
    source: Source,
    out: Out,
    registers: Annotated[int | None, setting("victor.registers")] = None,
    drop_layer: Annotated[int | None, setting("victor.drop_layer")] = None,
    positions: Annotated[str | None, setting("victor.positions")] = None,
    init: Annotated[str | None, setting("victor.init")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    revision: Annotated[str | None, setting("convert.revision")] = None,
    dtype: Annotated[str | None, setting("convert.dtype")] = None,
    verify: Annotated[str | None, setting("convert.verify")] = None,
    link: Annotated[bool | None, setting("convert.link")] = None,
    vision_tower: Annotated[str | None, setting("convert.vision_tower", "SOURCE")] = None,
    base: Annotated[str | None, setting("convert.base", "SOURCE")] = None,
    image_aspect: Annotated[str | None, setting("convert.image_aspect")] = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    device: Device = Run.device,
    attn: Attn = Run.attn,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Turn a LLaVA model into a Victor model: a folder that plain transformers loads.

    Example: victorctl convert llava-hf/llava-1.5-7b-hf --out victor-7b
    """
    flags = {
        "victor.registers": registers,
        "victor.drop_layer": drop_layer,
        "victor.positions": positions,
        "victor.init": init,
        "seed": seed,
        "convert.revision": revision,
        "convert.dtype": dtype,
        "convert.verify": verify,
        "convert.link": link,
        "convert.vision_tower": vision_tower,
        "convert.base": base,
        "convert.image_aspect": image_aspect,
    }
    settings = load_recipe(recipe, settings=changes, flags=flags)
    run = Run(
        out=out, overwrite=overwrite, dry_run=dry_run, device=device, attn=attn, threads=threads
    )
    from victorctl.convert import convert as stage

    result = stage(source, recipe=settings, run=run)
    following = hint(
        "finetune",
        out,
        "--data",
        settings.data.train,
        "--out",
        f"{out}-trained",
        *recipes.spell(recipe),
        dry_run=dry_run,
    )
    show("convert", result, as_json=json, following=following)


@app.command()
def finetune(
    model: Model,
    out: Out,
    data: Annotated[str | None, setting("data.train")] = None,
    train: Annotated[str | None, setting("train.rung")] = None,
    steps: Annotated[int | None, setting("train.steps")] = None,
    batch_size: Annotated[int | None, setting("train.batch_size")] = None,
    skip_bad: Annotated[bool | None, setting("data.skip_bad")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    log: Annotated[
        str,
        typer.Option(help="Where to tell each step's loss.", metavar="|".join(logs.KINDS)),
    ] = Run.log,
    processes: Processes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    attn: Attn = Run.attn,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train a converted model's registers to stand for the picture.

    Example: victorctl finetune victor-7b --data llava_v1_5_mix665k.json --out victor-7b-trained
    """
    flags = {
        "data.train": data,
        "train.rung": train,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "data.skip_bad": skip_bad,
        "seed": seed,
    }
    settings = load_recipe(recipe, settings=changes, flags=flags)
    run = Run(
        out=out, overwrite=overwrite, dry_run=dry_run, resume=resume,
        device=device, dtype=dtype, attn=attn, threads=threads, log=log,
    )  # fmt: skip
    from victorctl.finetune import finetune as stage

    result = stage(model, recipe=settings, run=run)
    following = hint("eval", out, *held_out(settings), *recipes.spell(recipe), dry_run=dry_run)
    show("finetune", result, as_json=json, table=sheet, following=following)


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[str | None, setting("eval.data")] = None,
    benchmarks: Annotated[str | None, setting("eval.benchmarks", "A,B,...")] = None,
    data_dir: Annotated[str | None, setting("eval.data_dir", "DIR")] = None,
    base: Base = None,
    baselines: Annotated[bool | None, setting("eval.baselines")] = None,
    registers: Annotated[int | None, setting("eval.registers")] = None,
    limit: Annotated[int | None, setting("eval.limit")] = None,
    batch_size: Annotated[int | None, setting("eval.batch_size")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    out: Report = None,
    processes: Processes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    attn: Attn = Run.attn,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure quality and cost beside the unconverted model, and write a report.

    Example: victorctl eval victor-7b-trained --data questions.jsonl --baselines
    """
    flags = {
        "eval.data": data,
        "eval.benchmarks": benchmarks,
        "eval.data_dir": data_dir,
        "eval.baselines": baselines,
        "eval.registers": registers,
        "eval.limit": limit,
        "eval.batch_size": batch_size,
        "seed": seed,
    }
    settings = load_recipe(recipe, settings=changes, flags=flags)
    run = Run(
        out=out, base=base, resume=resume, device=device, dtype=dtype, attn=attn, threads=threads
    )
    from victorctl.evaluate import evaluate as stage
    from victorctl.report import table

    result = stage(model, recipe=settings, run=run)
    show("eval", result, as_json=json, table=table, following=to_open(result.get("report")))


@app.command()
def compare(
    model: Model,
    data: Annotated[str | None, setting("eval.data")] = None,
    benchmarks: Annotated[str | None, setting("eval.benchmarks", "A,B,...")] = None,
    data_dir: Annotated[str | None, setting("eval.data_dir", "DIR")] = None,
    methods: Annotated[str | None, setting("compare.methods", "A,B,...")] = None,
    budgets: Annotated[str | None, setting("compare.budgets", "N,N,...|auto")] = None,
    base: Base = None,
    limit: Annotated[int | None, setting("eval.limit")] = None,
    batch_size: Annotated[int | None, setting("eval.batch_size")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the report; compare/ in the model if not given."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    attn: Attn = Run.attn,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure other methods beside Victor, on the same questions at the same budgets.

    Example: victorctl compare victor-7b-trained --data questions.jsonl --methods victor,fastv
    """
    flags = {
        "eval.data": data,
        "eval.benchmarks": benchmarks,
        "eval.data_dir": data_dir,
        "compare.methods": methods,
        "compare.budgets": budgets,
        "eval.limit": limit,
        "eval.batch_size": batch_size,
        "seed": seed,
    }
    settings = load_recipe(recipe, settings=changes, flags=flags)
    run = Run(
        out=out, base=base, resume=resume, device=device, dtype=dtype, attn=attn, threads=threads
    )
    from victorctl.compare import compare as stage
    from victorctl.standings import table

    result = stage(model, recipe=settings, run=run)
    show("compare", result, as_json=json, table=table, following=to_open(result["plot"]))


@app.command()
def push(
    model: Model,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; NAME alone: your own.")],
    report: Annotated[str | None, setting("push.report", "FILE")] = None,
    private: Annotated[bool | None, setting("push.private")] = None,
    revision: Annotated[str | None, setting("push.revision", "BRANCH")] = None,
    pr: Annotated[bool | None, setting("push.pr")] = None,
    message: Annotated[str | None, setting("push.message")] = None,
    untrained: Annotated[bool | None, setting("push.untrained")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show it, send nothing.")
    ] = False,
    recipe: RecipeFile = None,
    changes: Changes = None,
    json: Json = False,
) -> None:
    """Publish a model on the Hub, with a page that says what was measured.

    Example: victorctl push victor-7b-trained YOU/victor-7b
    """
    flags = {
        "push.report": report,
        "push.private": private,
        "push.revision": revision,
        "push.pr": pr,
        "push.message": message,
        "push.untrained": untrained,
    }
    settings = load_recipe(recipe, settings=changes, flags=flags)
    from victorctl.push import after, table
    from victorctl.push import push as stage

    result = stage(model, repo, recipe=settings, run=Run(dry_run=dry_run))
    following = hint(*after(result), dry_run=dry_run)
    show("push", result, as_json=json, table=table, following=following)


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    out: Out,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.", metavar="REV")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fetch a published Victor model, and check every file of it.

    Example: victorctl pull YOU/victor-7b --out victor-7b
    """
    from victorctl.pull import pull as stage

    result = stage(repo, revision=revision, run=Run(out=out, overwrite=overwrite))
    show("pull", result, as_json=json, following=hint("inspect", out))


app.registered_commands += looks.app.registered_commands

for name, group in groups.GROUPS.items():
    app.add_typer(group, name=name)
