"""Cells of a benchmark's rows, alike whatever stored them: CSV has lists and structs as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from victorctl.data import formats
from victorctl.data.formats import BadRow


def words(row: Mapping[str, Any], name: str) -> str:
    """Take a column's text, or a number as one.

    Raises:
        BadRow: If it holds neither.
    """
    value = row[name]
    if not isinstance(value, str | int | float) or value != value:
        raise BadRow("form", f"{name} is no text: {value!r:.80}", fix="write a text there")
    return str(value)


def several(row: Mapping[str, Any], name: str) -> list[Any]:
    """Take a column's list; one thing is a list of one, and nothing an empty one.

    Raises:
        BadRow: If it is JSON that cannot be read.
    """
    return [one for one in formats.listed(_read(row, name, "[")) if one is not None]


def struct(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Take a column's struct; none where there is nothing, or no such column.

    Raises:
        BadRow: If it is JSON that cannot be read.
    """
    value = _read(row, name, "{")
    return value if isinstance(value, dict) else {}


def joined(row: Mapping[str, Any], name: str) -> str:
    """Make one kind of question of those that a column lists; "all" where it lists none."""
    return " + ".join(str(one) for one in several(row, name)) or "all"


def identity(row: Mapping[str, Any], *names: str) -> str | None:
    """Join columns that together tell what a row is about; None where one of them is not there."""
    cells = [row.get(name) for name in names]
    return None if None in cells else " ".join(map(str, cells))


def _read(row: Mapping[str, Any], name: str, start: str) -> Any:
    value = row.get(name)
    if not (isinstance(value, str) and value.startswith(start)):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        fix = "write a list or struct as JSON, with its quotes"
        raise BadRow("form", f"{name} is not JSON: {value:.80}", fix=fix) from error
