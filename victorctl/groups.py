"""Groups of commands: `victorctl recipes list` and its like."""

from pathlib import Path
from typing import Annotated

import typer

from victorctl import recipes
from victorctl.options import Json, ListFirst, Overwrite
from victorctl.output import hint, rows, show

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
    show("recipes-copy", {"file": path}, as_json=json, following=hint("recipes", "keys", path))


GROUPS = {"recipes": recipes_app}
