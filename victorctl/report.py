"""What an evaluation leaves: a table for the terminal, a page, plots, and numbers for scripts."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl import outcome
from victorctl.files import write_whole
from victorctl.outcome import Grid
from victorctl.page import page
from victorctl.plots import OF_PAGE, PLOTS, Palette, draw, png, svg

SCHEMA = "victorctl/eval/1"
FIRST = 24  # columns of the terminal for names, where the rest leaves as many


def table(result: Mapping[str, Any]) -> RenderableType:
    """Sum up an evaluation for the terminal, in 80 columns.

    Args:
        result: What `evaluate` returns: the keys of `victorctl eval --json`, and `settings`.
    """
    said = outcome.headline(result)
    blocks = [
        Text.assemble(*((piece, "bold" if strong else "") for piece, strong in said)),
        *_qualities(result),
        _grid(outcome.costs(result)),
        *(Text(note, "dim") for note in outcome.gaps(result)),
    ]
    if outcome.prefills(result):
        blocks.append(_grid(outcome.speedups(result)))
    if result["baselines"]:
        blocks += _explained(outcome.rivals(result), first=16)
    if outcome.untrained(result):
        blocks.insert(0, Text(" untrained ", "bold reverse yellow"))
    return Group(*(part for block in blocks for part in (block, "")))


def write(
    result: Mapping[str, Any], differences: Sequence[Mapping[str, Any]], folder: Path
) -> Path:
    """Write `report.json`, `report.html` and, where something was compared, the plots.

    Args:
        result: As for `table`; a number that does not exist is None, never NaN.
        differences: Questions that model and base answer differently, each with `picture`,
            `question`, `answer`, `model`, `base`, `type`, `model_right` and `base_right`, of a
            benchmark with its name as `benchmark`.
        folder: Where to write; made if it is missing.

    Returns:
        Path of `report.html`, which needs no other file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {key: value for key, value in result.items() if key != "report"}  # a local path
    text = json.dumps({"schema": SCHEMA, **numbers}, indent=1, default=os.fspath, allow_nan=False)
    inside = {name: svg(figure, name) for name, figure in draw(result, OF_PAGE).items()}
    files = {"report.json": f"{text}\n".encode(), "report.html": page(result, differences, inside)}
    for name, figure in draw(result, Palette()).items():
        files |= {f"{name}.png": png(figure), f"{name}.svg": svg(figure, name).encode()}
    for name in {f"{plot}.{kind}" for plot in PLOTS for kind in ("png", "svg")} - set(files):
        (folder / name).unlink(missing_ok=True)  # of an evaluation before
    for name, content in files.items():
        write_whole(folder / name, content)
    return folder / "report.html"


def _qualities(result: Mapping[str, Any]) -> list[RenderableType]:
    """Make the tables of scores, and say how alike the answers are."""
    found = outcome.qualities(result)
    blocks = _explained(found.only("questions", "base", "model", "kept"))
    if result["agreement"] is not None and outcome.benchmarks(result):
        blocks.append(_grid(found.only("same answers", "KL, nats")))
    said = (outcome.part(result), outcome.likeness(result))
    return [*blocks, *map(Text, filter(None, said))]


def _explained(found: Grid, first: int = FIRST) -> list[RenderableType]:
    note = [Text(outcome.NOISE_MEANING, "dim")] if found.noisy else []
    return [_grid(found, first), *note]


def _grid(found: Grid, first: int = FIRST) -> Table:
    found = found.known().plain()
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    grid.add_column(found.head[0], min_width=first, overflow="fold")
    for title in found.head[1:]:
        grid.add_column(title, justify="right", no_wrap=True)
    for line in found.lines:
        grid.add_row(line.name, *line.cells, style="bold" if line.own else "")
    return grid
