"""Groups of commands: `victorctl recipes list` and its like."""

from pathlib import Path
from typing import Annotated

import typer

from victorctl import recipes
from victorctl.options import (
    Attn,
    Changes,
    CommandItself,
    Device,
    Dtype,
    Json,
    ListFirst,
    Overwrite,
    Picture,
    RecipeFile,
    Seed,
    Threads,
    named,
    parse_size,
    setting,
)
from victorctl.output import rows, show
from victorctl.recipe import Run, load_recipe

recipes_app = typer.Typer(
    cls=ListFirst,
    help="List, explain and copy the recipes that come along.\n\nExample: victorctl recipes",
)


@recipes_app.command("list")
def list_recipes(json: Json = False) -> None:
    """List the recipes; `--recipe` takes their names.

    Example: victorctl recipes list
    """
    show("recipes", {"recipes": recipes.summaries()}, as_json=json, table=rows)


@recipes_app.command("keys")
def recipe_keys(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Show what this recipe, a file or one of ours, gives, too.",
            metavar="FILE",
            parser=recipes.find,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Explain every key of a recipe: type, range, default and meaning.

    Example: victorctl recipes keys my.yaml
    """
    show("recipes-keys", {"keys": recipes.explain(file)}, as_json=json, table=rows)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="Name, as in `victorctl recipes list`.")],
    out: Annotated[Path | None, typer.Option("--out", help="File or folder to write.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Copy a recipe here, to be changed.

    Example: victorctl recipes copy demo/victor
    """
    path = recipes.copy(name, out=out, overwrite=overwrite)
    show(
        "recipes-copy",
        {"file": path},
        as_json=json,
        following=recipes.after(path, name),
    )


data_app = typer.Typer(
    no_args_is_help=True,
    help="Look at data before training on them.\n\nExample: victorctl data check demo:test",
)

Data = Annotated[
    str,
    typer.Argument(
        help="`demo`, `demo:test`, a file, a folder, a Hub id, or a mixture in a YAML file.",
        metavar="DATA",
    ),
]
Reader = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder or Hub id of a model, whose chat template and tokens are used.",
        metavar="SOURCE",
        parser=named,
    ),
]


@data_app.command("show")
def show_data(
    data: Data,
    count: Annotated[int, typer.Option("-n", help="Rows to show.", min=1, metavar="N")] = 3,
    model: Reader = None,
    json: Json = False,
) -> None:
    """Show what a model will see of the first rows, and where the loss is.

    Example: victorctl data show demo -n 2 --model demo
    """
    from victorctl.data.showing import show as look
    from victorctl.data.showing import table

    show("data-show", look(data, count, model=model), as_json=json, table=table)


@data_app.command("check")
def check_data(
    data: Data,
    rows: Annotated[
        int | None,
        typer.Option("--rows", help="Check only so many; all if not given.", min=1, metavar="N"),
    ] = None,
    model: Reader = None,
    json: Json = False,
) -> None:
    """Count what data hold, decode every picture, and list what is bad.

    Example: victorctl data check demo --rows 20
    """
    from victorctl.data.checking import check, demand, table

    result = check(data, rows=rows, model=model)
    show("data-check", result, as_json=json, table=table)
    demand(result)


bench_app = typer.Typer(
    cls=CommandItself,
    name="bench",
    help="Measure speed and memory beside the unconverted model.\n\n"
    "Example: victorctl bench --shape llava-1.5-7b",
)


@bench_app.command("bench")
def bench(
    model: Annotated[
        Path | None,
        typer.Argument(help="Folder of a converted model, in place of --shape.", metavar="MODEL"),
    ] = None,
    shape: Annotated[str | None, setting("bench.shape")] = None,
    layers: Annotated[int | None, setting("bench.layers")] = None,
    width_scale: Annotated[float | None, setting("bench.width_scale")] = None,
    registers: Annotated[int | None, setting("bench.registers")] = None,
    drop_layer: Annotated[int | None, setting("bench.drop_layer")] = None,
    also: Annotated[list[str] | None, setting("bench.also", "M@K|METHOD[:M@K]")] = None,
    text: Annotated[int | None, setting("bench.text")] = None,
    picture: Picture = "640x480",
    batch_size: Annotated[int | None, setting("bench.batch_size")] = None,
    repeats: Annotated[int | None, setting("bench.repeats")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    attn: Attn = Run.attn,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure speed, memory and FLOPs beside the unconverted model; of training: bench train.

    Example: victorctl bench --shape llava-1.5-7b --layers 8 --width-scale 0.25
    """
    flags = {
        "bench.shape": shape,
        "bench.layers": layers,
        "bench.width_scale": width_scale,
        "bench.registers": registers,
        "bench.drop_layer": drop_layer,
        "bench.also": also,
        "bench.text": text,
        "bench.batch_size": batch_size,
        "bench.repeats": repeats,
        "seed": seed,
    }
    settings = load_recipe(recipe, settings=changes, flags=flags)
    seen = parse_size(picture)
    from victorctl.bench import bench as stage
    from victorctl.speeds import table

    run = Run(device=device, dtype=dtype, attn=attn, threads=threads)
    result = stage(model, recipe=settings, run=run, picture=seen)
    show("bench", result, as_json=json, table=table)


@bench_app.command("train")
def bench_train(
    layers: Annotated[int | None, setting("bench.layers")] = None,
    width: Annotated[int | None, setting("bench.width")] = None,
    registers: Annotated[int | None, setting("victor.registers")] = None,
    batch_size: Annotated[int | None, setting("bench.batch_size")] = None,
    questions: Annotated[int | None, setting("bench.questions")] = None,
    text_before: Annotated[int | None, setting("bench.text_before")] = None,
    repeats: Annotated[int | None, setting("bench.repeats")] = None,
    seed: Seed = None,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure a training step beside a naive one and one of the unconverted model.

    Example: victorctl bench train --layers 8
    """
    flags = {
        "bench.layers": layers,
        "bench.width": width,
        "victor.registers": registers,
        "bench.batch_size": batch_size,
        "bench.questions": questions,
        "bench.text_before": text_before,
        "bench.repeats": repeats,
        "seed": seed,
    }
    settings = load_recipe(flags=flags)
    from victorctl.bench_train import train

    result = train(recipe=settings, run=Run(device=device, dtype=dtype, threads=threads))
    show("bench-train", result, as_json=json)


GROUPS = {"data": data_app, "recipes": recipes_app, "bench": bench_app}
