"""The commands that look at what is there, and write no model."""

from pathlib import Path
from typing import Annotated

import typer

from victorctl.options import (
    Attn,
    Base,
    Changes,
    Device,
    Dtype,
    Json,
    Model,
    Overwrite,
    Picture,
    RecipeFile,
    Source,
    Threads,
    asked_for,
    parse_size,
    setting,
)
from victorctl.output import rows, sheet, show, tables, to_open
from victorctl.recipe import Run, load_recipe

app = typer.Typer()


@app.command()
def inspect(
    source: Source,
    picture: Picture = "640x480",
    vision_tower: Annotated[str | None, setting("convert.vision_tower", "SOURCE")] = None,
    base: Annotated[str | None, setting("convert.base", "SOURCE")] = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    json: Json = False,
) -> None:
    """Say what a model is, what Victor would do to it, or what it has become.

    Example: victorctl inspect victor-7b
    """
    from victorctl.inspect import inspect as stage

    how = {"picture": parse_size(picture), "vision_tower": vision_tower, "base": base}
    how["recipe"] = asked_for(recipe, changes)
    show("inspect", stage(source, **how), as_json=json, table=sheet)


@app.command("show")
def show_picture(
    model: Model,
    picture: Annotated[Path, typer.Argument(help="File of the picture.")],
    question: Annotated[str, typer.Option("-q", "--question", help="What to ask about it.")],
    base: Base = None,
    registers: Annotated[int | None, setting("eval.registers")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG to draw; PICTURE-victor.png if not given.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = Run.device,
    dtype: Dtype = Run.dtype,
    attn: Attn = Run.attn,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Ask a model and its base about a picture, and draw where the registers look.

    Example: victorctl show victor-7b-trained cat.jpg -q "What is on the chair?"
    """
    settings = load_recipe(flags={"eval.registers": registers})
    run = Run(
        out=out, overwrite=overwrite, base=base,
        device=device, dtype=dtype, attn=attn, threads=threads,
    )  # fmt: skip
    from victorctl.show import show as look
    from victorctl.show import table

    result = look(model, picture, question, recipe=settings, run=run)
    show("show", result, as_json=json, table=table, following=to_open(result["picture"]))


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="report.json, its folder, or a measured model's.")],
    second: Annotated[Path, typer.Argument(help="Another, in any of these forms.")],
    json: Json = False,
) -> None:
    """Compare two reports: what differs, what changed, and whether that is noise.

    Example: victorctl diff victor-7b-trained victor-7b-longer
    """
    from victorctl.beside import table
    from victorctl.diff import diff as compare

    show("diff", compare(first, second), as_json=json, table=table)


@app.command()
def methods(json: Json = False) -> None:
    """List the methods that `compare` takes: where they act, and what they follow.

    Example: victorctl methods
    """
    from victorctl.ways import describe

    show("methods", describe(), as_json=json, table=rows)


@app.command()
def families(json: Json = False) -> None:
    """List the model families that can be converted, and the text models that were tried.

    Example: victorctl families
    """
    from victorctl.families import describe

    show("families", describe(), as_json=json, table=tables)


@app.command()
def doctor(json: Json = False) -> None:
    """Check this machine: versions, devices, memory, disk, the Hub's settings.

    Example: victorctl doctor
    """
    from victorctl.doctor import demand, diagnose

    result = diagnose()
    show("doctor", result, as_json=json, table=rows)
    demand(result)
