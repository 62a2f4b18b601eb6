"""The generated parts of README and docs/: read from the code, and from stored measurements."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import get_args

from typer.models import ArgumentInfo

from tests import benchmark_pages, compare_pages, estimate_pages
from tests.result_pages import (
    DOCS,
    converting,
    file_of,
    foretold,
    grown,
    in_short,
    join,
    kinds_of_questions,
    lines,
    speeds,
    stored,
    studies,
    summary,
    table,
    training_steps,
    typed,
)
from victorctl import cli, families, recipes
from victorctl.groups import GROUPS

README = DOCS.parent / "README.md"
RUNGS = ("victor", "lora", "registers")  # recipes of the demo that docs/results/ has numbers of
BEGIN = "<!-- generated: change the code, then run pytest --update-docs -->"
END = "<!-- end of what is generated -->"
VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH", list[str]: "TEXT"}


def blocks() -> dict[Path, str]:
    """Map each page to the part of it that is generated."""
    groups = {name: {name: do} for name, do in commands(cli.app).items()}
    for group, app in GROUPS.items():
        groups[group] = {
            group if name == group else f"{group} {name}": do for name, do in commands(app).items()
        }
    pages = {
        DOCS / "commands" / f"{name}.md": "\n\n".join(command(*item) for item in group.items())
        for name, group in groups.items()
    }
    pages[DOCS / "commands" / "families.md"] += "\n\n" + join(kinds(), backbones())
    pages[DOCS / "commands" / "methods.md"] += "\n\n" + compare_pages.methods()
    texts = {name: do.__doc__ for name, do in commands(cli.app).items()}
    texts |= {group: app.info.help for group, app in GROUPS.items()}
    about = [
        (f"[{name}](commands/{name}.md)", text.splitlines()[0]) for name, text in texts.items()
    ]
    pages[DOCS / "cli.md"] = table(("command", "what it does"), about)
    pages[DOCS / "recipes.md"] = table(
        ("key", "type", "default", "meaning"),
        (
            (f"`{row['key']}`", code(row["type"]), default_of(row["default"]), row["meaning"])
            for row in recipes.describe()
        ),
    )
    measured = {name: stored(f"demo-{name}") for name in RUNGS}
    shown = join(*summary(measured), *studies("demo"), typed(measured))
    pages[README] = in_short(measured["victor"])
    if (measured_by_bench := DOCS / "results" / "bench.jsonl").exists():
        shown = join(shown, speeds(lines(measured_by_bench)))
    if file_of("bench-train").exists():
        shown = join(shown, training_steps(stored("bench-train")["runs"]))
    if file_of("demo-compare").exists():
        shown = join(shown, compare_pages.comparison("demo"))
    if file_of("demo-compare-original").exists():
        shown = join(shown, compare_pages.with_positions("demo"))
    pages[DOCS / "results.md"] = join(shown, converting(stored("converting")))
    pages[DOCS / "benchmarks.md"] = benchmark_pages.block(table)
    pages[DOCS / "estimate.md"] = estimate_pages.block(table, file_of("estimate"))
    if file_of("smol-victor").exists():
        real = {"victor": stored("smol-victor")}
        base = stored("smol-base")
        read = foretold(base["untouched_perplexity"], real["victor"]["perplexity"])
        pages[DOCS / "smol.md"] = join(
            grown(base),
            *summary(real),
            kinds_of_questions(real["victor"]),
            read,
            *studies("smol"),
            typed({"base": base, **real}),
            *([compare_pages.comparison("smol")] if file_of("smol-compare").exists() else []),
        )
    return pages


def kinds() -> str:
    known = families.describe()
    rows = [(code(row["family"]), row["becomes"], row["remarks"]) for row in known["families"]]
    rows += [(code(row["refused"]), "refused", row["remarks"]) for row in known["refused"]]
    return table(("family", "becomes", "remarks"), rows)


def backbones() -> str:
    rows = families.describe()["text_models"]
    marked = [(code(row["text_model"]), row["verdict"], row["remarks"]) for row in rows]
    return table(("text model", "verdict", "remarks"), marked)


def refresh(text: str, title: str, block: str) -> str:
    """Put a block in its place in a page; a page without one gets it under its title."""
    if BEGIN not in text:
        text = f"# {title}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.partition(END)[2]}"


def commands(app: cli.typer.Typer) -> dict[str, Callable]:
    return {info.name or info.callback.__name__: info.callback for info in app.registered_commands}


def command(name: str, do: Callable) -> str:
    about, _, example = inspect.getdoc(do).splitlines()
    example = example.removeprefix("Example: ")
    options = table(("`victorctl " + name + "`", "meaning"), parameters(do))
    return f"{about}\n\n```shell\n{example}\n```\n\n{options}"


def parameters(do: Callable) -> Iterator[tuple[str, str]]:
    for parameter in inspect.signature(do).parameters.values():
        annotation, info = get_args(parameter.annotation)
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
        kind = annotation if annotation in VALUES else kinds[0]
        value = "" if kind is bool else " " + (info.metavar or VALUES[kind])
        if isinstance(info, ArgumentInfo):
            name, value = parameter.name.upper(), ""
        else:
            # Inside Annotated, typer takes the first name for a default.
            names = [info.default, f"--{parameter.name.replace('_', '-')}"]
            name = next(name for name in names if isinstance(name, str)).replace("/", " / ")
        required = parameter.default is inspect.Parameter.empty
        yield (
            code(name + value),
            f"{info.help}{' Required.' if required else ''}"
            + (f" (default {parameter.default})" if isinstance(parameter.default, str) else ""),
        )


def code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def default_of(value: object) -> str:
    if isinstance(value, list | tuple):
        return code(f"[{', '.join(value)}]")
    return "" if value is None else code(str(value).lower())
