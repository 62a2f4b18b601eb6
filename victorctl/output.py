"""Print a result: a table or one JSON object on stdout, the next command on stderr."""

import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from victorctl.launch import is_first
from victorctl.units import DASH, size

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
INDENT = " " * 4
GAP = " " * 2  # between columns
ROOM = 24  # the narrowest column whose texts are broken into lines


class Lines:
    """Lines made for the width of the terminal, in which no word is ever broken.

    Args:
        write: Makes them for so many columns; a word that is longer than that stays whole.
    """

    def __init__(self, write: Callable[[int], Iterable[Text]]) -> None:
        self.write = write

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line in self.write(options.max_width):
            line.rstrip()
            line.no_wrap, line.overflow = True, "ignore"
            yield line


def summary(result: Mapping[str, Any]) -> RenderableType:
    """Put one key and its value on each line, inner keys below their own; empty lists are left out.

    What does not fit beside its key stands below it.
    """
    return Lines(partial(_summary, list(_flat(result))))


def rows(result: Mapping[str, Any]) -> RenderableType:
    """Make a table of the result's first value, a list of rows with the same keys.

    The last columns stand below their row where the terminal is too narrow, if they say anything.
    """
    return Lines(partial(_rows, next(iter(result.values()))))


def tables(result: Mapping[str, Any]) -> RenderableType:
    """Make a table of every value of the result, with an empty line between two."""
    made = [rows({key: value}) for key, value in result.items()]
    return Group(made[0], *(part for table in made[1:] for part in ("", table)))


def sheet(result: Mapping[str, Any]) -> RenderableType:
    """Summarise, and put a table of every list of rows below it, wherever it stands."""
    plain, found = _apart(result)
    return Group(summary(plain), *(part for table in found for part in ("", rows({"": table}))))


def hint(*words: str | Path | None, dry_run: bool = False) -> str:
    """Write the next command as it is typed; None stands for data that only the user knows."""
    if dry_run:
        return "the same without --dry-run"
    return shlex.join(["victorctl", *("DATA" if word is None else str(word) for word in words)])


def to_open(page: str | None) -> str:
    """Write the command that opens a page or a picture; nothing where there is none."""
    return shlex.join(["python", "-m", "webbrowser", page]) if page else ""


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
    if not is_first():
        return
    if as_json:
        content = {"schema": f"victorctl/{command}/1", **_finite(result)}
        sys.stdout.write(json.dumps(content, default=os.fspath, allow_nan=False) + "\n")
    else:
        Console().print(table(result), crop=False)
    if following:
        Console(stderr=True).print(Text("next:", "dim"), Text(following, "bold"), soft_wrap=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _apart(result: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Take lists of rows out of a result."""
    plain, found = {}, []
    for key, value in result.items():
        if isinstance(value, Mapping):
            plain[key], inner = _apart(value)
            found += inner
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            found.append(value)
        else:
            plain[key] = value
    return plain, found


def _flat(
    result: Mapping[str, Any], indent: str = "", unit: str = ""
) -> Iterator[tuple[str, list[Text]]]:
    """List the keys, indented, and what each says: a line for a number, one for every sentence.

    Numbers below a key that ends in "bytes" are bytes.
    """
    for key, value in result.items():
        if isinstance(value, Mapping) and value:
            yield indent + key, []
            yield from _flat(value, indent + GAP, key if key.endswith("bytes") else "")
        elif isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            if value:
                yield indent + key, [Text(each) for each in value]
        else:
            yield indent + key, [_text(unit or key, value)]


def _summary(entries: Sequence[tuple[str, list[Text]]], width: int) -> Iterator[Text]:
    column = max((len(key) for key, _ in entries), default=0) + len(GAP)
    for key, said in entries:
        beside = [line for text in said for line in _wrap(text, width - column)] or [Text()]
        if all(len(line) <= width - column for line in beside):
            names = [key] + [""] * (len(beside) - 1)
            for name, line in zip(names, beside, strict=True):
                yield Text.assemble(name.ljust(column), line)
        else:
            yield Text(key)
            for text in said:
                yield from _below(text, width)


def _rows(entries: Sequence[Mapping[str, Any]], width: int) -> Iterator[Text]:
    if not entries:
        return
    keys = list(entries[0])
    table = [[_text(key, entry[key]) for key in keys] for entry in entries]
    header = [Text(key, "bold") for key in keys]
    widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
    room = width - sum(widths[:-1]) - len(GAP) * (len(keys) - 1)
    last = [_wrap(cells[-1], room) for cells in table]
    fits = room >= min(widths[-1], ROOM) and all(
        len(line) <= room for lines in last for line in lines
    )
    count = len(keys) if fits else _fitting(widths, width)
    yield _row(header[:count], widths)
    for cells, lines in zip(table, last, strict=True):
        if fits:
            for place, line in enumerate(lines):
                yield _row([*([Text()] * len(cells[:-1]) if place else cells[:-1]), line], widths)
            continue
        yield _row(cells[:count], widths)
        for key, cell in zip(keys[count:], cells[count:], strict=True):
            if cell.plain not in ("", DASH):
                yield from _below(Text.assemble(f"{key}: ", cell), width)


def _fitting(widths: Sequence[int], width: int) -> int:
    """Count the columns that fit, one at least."""
    ends = accumulate(own + len(GAP) for own in widths)
    return max(1, sum(end - len(GAP) <= width for end in ends))


def _row(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    padded = [
        (cell, " " * (width - len(cell)), GAP) for cell, width in zip(cells, widths, strict=False)
    ]
    return Text.assemble(*(part for parts in padded for part in parts))


def _below(text: Text, width: int) -> Iterator[Text]:
    for line in _wrap(text, width - len(INDENT)):
        yield Text.assemble(INDENT, line)


def _wrap(text: Text, width: int) -> list[Text]:
    """Break a text between words."""
    if len(text) <= width:
        return [text]
    lines = textwrap.wrap(text.plain, max(width, 1), break_long_words=False, break_on_hyphens=False)
    return [Text(line) for line in lines]


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
    if isinstance(value, Mapping):  # one of a list: its first value tells which
        return _text(key, next(iter(value.values()), None))
    if isinstance(value, list | tuple):
        return Text(", ".join(_text(key, inner).plain for inner in value))
    return Text(str(value), COLOURS.get(str(value), ""))
