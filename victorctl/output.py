"""Print a result: a table or one JSON object on stdout, the next command on stderr."""

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl.units import DASH, size

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def summary(result: Mapping[str, Any]) -> RenderableType:
    """Put one key and its value on each line; inner keys are dotted."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _flat(result):
        table.add_row(key, _text(key, value))
    return table


def rows(result: Mapping[str, Any]) -> RenderableType:
    """Make a table of the result's first value, a list of rows with the same keys."""
    entries = next(iter(result.values()))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, key in enumerate(entries[0] if entries else ()):
        table.add_column(key, overflow="fold", no_wrap=place == 0)
    for entry in entries:
        table.add_row(*(_text(key, value) for key, value in entry.items()))
    return table


def hint(*words: str | Path | None, dry_run: bool = False) -> str:
    """Write the next command as it is typed; None stands for data that only the user knows."""
    if dry_run:
        return "the same without --dry-run"
    return shlex.join(["victorctl", *("DATA" if word is None else str(word) for word in words)])


def show(
    command: str,
    result: Mapping[str, Any],
    *,
    as_json: bool,
    table: Callable[[Mapping[str, Any]], RenderableType] = summary,
    following: str = "",
) -> None:
    """Print a command's result.

    Args:
        command: Name in the schema, such as "convert".
        result: What the stage returned; paths become text, and numbers that are none become null.
        as_json: Print one JSON object and nothing else on stdout.
        table: Turns the result into what a person reads.
        following: The next command to type; nothing is said where it is empty.
    """
    if as_json:
        content = {"schema": f"victorctl/{command}/1", **_finite(result)}
        sys.stdout.write(json.dumps(content, default=os.fspath, allow_nan=False) + "\n")
    else:
        Console().print(table(result))
    if following:
        Console(stderr=True).print(Text("next:", "dim"), Text(following, "bold"), soft_wrap=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(result: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in result.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def _text(key: str, value: Any) -> Text:
    if value is None:
        return Text(DASH, "dim")
    if isinstance(value, bool):
        return Text(str(value).lower())
    if isinstance(value, int) and key.endswith("bytes"):
        return Text(size(value))
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return Text(", ".join(_text(key, inner).plain for inner in value))
    return Text(str(value), COLOURS.get(str(value), ""))
