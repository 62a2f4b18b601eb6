"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import typer.core

from victorctl import __version__, launch, recipes
from victorctl.errors import VictorError
from victorctl.recipe import Recipe, flag, load_recipe

LONGEST = 100_000  # pixels of a picture's side


def setting(key: str, metavar: str | None = None) -> Any:
    """Make the option for a key of the recipe, whose own docstring and default are its help."""
    *sections, name = key.split(".")
    model: Any = Recipe
    for section in sections:
        model = model.model_fields[section].annotation
    field = model.model_fields[name]
    names = f"{flag(key)}/--no-{flag(key)[2:]}" if field.annotation is bool else flag(key)
    kinds = (field.annotation, *get_args(field.annotation))  # a choice may be left open: or None
    choices = [choice for kind in kinds for choice in get_args(kind) if isinstance(choice, str)]
    usual = field.default
    shown = ",".join(map(str, usual)) if isinstance(usual, tuple) else usual
    default = "" if usual in (None, ()) else f" (default {shown})".lower()
    return typer.Option(
        names, help=field.description + default, metavar="|".join(choices) or metavar
    )


def named(word: str) -> str:
    """Let `demo` be the model that comes along, and say so where a folder has that name, too."""
    if word != "demo" or not Path(word).exists():
        return word
    from victorctl.sources import DEMO

    typer.echo("note: demo is the model that comes along; ./demo is the folder here", err=True)
    return str(DEMO)


def parse_size(text: str) -> tuple[int, int]:
    """Read a picture's width and height, and return height and width.

    Raises:
        VictorError: If it is no size.
    """
    width, _, height = text.lower().partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (width, height)]
    if not all(0 < side <= LONGEST for side in sides):
        problem = f"--picture {text}: not a width and a height in pixels"
        raise VictorError(problem, fix="write it as in --picture 640x480")
    return sides[1], sides[0]


def spread(count: int | None) -> None:
    """Let several processes do what was typed, and leave with their exit code."""
    if count is not None and count != 1:
        raise typer.Exit(launch.several(count))


Model = Annotated[Path, typer.Argument(help="Folder of a converted model.")]
Source = Annotated[
    str,
    typer.Argument(
        help="Folder or Hub id of a model, or demo: the one that comes along.",
        metavar="SOURCE", parser=named,
    ),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Report = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the report; eval/ in the model if not given."),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Model to compare with: a folder, a Hub id, or none.",
        metavar="SOURCE|none",
        parser=named,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")]
Picture = Annotated[
    str, typer.Option(help="Size of the picture whose tokens are counted.", metavar="WIDTHxHEIGHT")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="YAML file, or one of ours by name.", metavar="FILE", parser=recipes.find
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one key of the recipe; repeatable.", metavar="KEY=VALUE"),
]
Processes = Annotated[
    int | None,
    typer.Option(
        launch.OPTION, help="Share the work among processes, one for each GPU.", callback=spread
    ),
]
Seed = Annotated[int | None, setting("seed")]
Device = Annotated[str, typer.Option(help="Where to compute.", metavar="auto|cpu|cuda[:N]")]
Dtype = Annotated[str, typer.Option(help="Number format.", metavar="auto|bf16|fp16|fp32")]
Attn = Annotated[str, typer.Option(help="Attention.", metavar="sdpa|eager")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's choice if not given.")]


def asked_for(file: Path | None, changes: list[str] | None) -> Recipe | None:
    """Read a recipe where one is asked for: by a file, or by a change of the defaults."""
    return load_recipe(file, settings=changes) if file or changes else None


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"victorctl {__version__}")
        raise typer.Exit


class ListFirst(typer.core.TyperGroup):
    """A group that lists when no subcommand is named."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Put `list` before options, or where nothing stands at all."""
        named = args and (not args[0].startswith("-") or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


class CommandItself(typer.core.TyperGroup):
    """A group that is a command, too: its subcommand of the same name, unless another is named."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Let the command take the group's place, so that usage and help are its own."""
        others = set(self.commands) - {self.name}
        if args and args[0] in others:
            return super().make_context(info_name, args, parent, **extra)
        return self.commands[self.name].make_context(info_name, args, parent, **extra)
