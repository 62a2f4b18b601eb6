"""A benchmark's questions, from its data: columns checked, pictures found, ids told apart."""

import hashlib
import itertools
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from victorctl.benchmarks import benchmark
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Beside
from victorctl.benchmarks.columns import several
from victorctl.benchmarks.sources import Source
from victorctl.data import formats, records
from victorctl.data.formats import BadRow
from victorctl.data.records import Opened, Record
from victorctl.data.rows import Picture, check_files
from victorctl.errors import VictorError

MANY = 20_000  # rows that take seconds to read
TAR = "images"  # column of all the pictures of a tar's sample

Pictures = Mapping[str, tuple[Picture, ...]]
"""Pictures that are stored apart from the questions, by name."""


class Questions(NamedTuple):
    """All that a benchmark asks, or the first of it.

    Args:
        benchmark: Marks the answers.
        asked: In the order of the data; their pictures exist, and are closed.
        sha256: Identifies the data.
        form: How they are stored, in words.
    """

    benchmark: Benchmark
    asked: list[Asked]
    sha256: str
    form: str


def check_copies(names: Sequence[str], data_dir: Path | None) -> None:
    """Look for the copies of several benchmarks, and read none.

    Args:
        names: Of the benchmarks.
        data_dir: Should hold them; None: there are to be none.

    Raises:
        VictorError: If there is no such benchmark, or one has no copy: names all of these.
    """
    sources = [Source(name, benchmark(name), data_dir) for name in names]
    lacking = [source for source in sources if source.is_missing]
    if lacking:
        problem = f"{data_dir}: no folder or file called {', '.join(one.name for one in lacking)}"
        raise VictorError(problem, fix=" && ".join(one.fix for one in lacking))


def open_benchmark(
    name: str, *, data_dir: Path | None, limit: int | None, quiet: bool
) -> Questions:
    """Open a benchmark's data and put its questions.

    Args:
        name: One of the table's.
        data_dir: Holds a copy of the data, in a folder or file of the benchmark's name, with the
            columns that they have on the Hub; None: they are fetched from there.
        limit: Take only so many questions, from the start, and the others that are marked with
            them; None for all.
        quiet: Neither show progress nor say what was read.

    Raises:
        VictorError: If there is no such benchmark, or its data are not there, lack a column, or
            have a row that cannot be used, two of one id, or a picture that is not there.
    """
    from victorctl.runtime import say

    source = Source(name, benchmark(name), data_dir)
    opened = source.open(None if source.benchmark.whole_units else limit)
    asked, sha256 = _ask(source, opened, quiet=quiet)
    if limit is not None and len(asked) < limit == len(opened.records):  # some rows ask nothing
        opened = source.open(None)
        asked, sha256 = _ask(source, opened, quiet=quiet)
    if not asked:
        problem = f"{source.place}: no row is a question of {source.benchmark.title}"
        raise VictorError(problem, fix=source.fix)
    asked = [_with_unit(one) for one in _first(source.benchmark, asked, limit)]
    more = "" if limit is None or len(asked) <= limit else f": {limit}, and those marked with them"
    say(f"{name}: {opened.form}; {len(asked)} questions{more}", quiet=quiet)
    return Questions(source.benchmark, asked, sha256, opened.form)


def _ask(source: Source, opened: Opened, *, quiet: bool) -> tuple[list[Asked], str]:
    """Put the questions of all rows, and hash the data on the way where that is not done."""
    from victorctl.runtime import progress

    found, count = source.benchmark, len(opened.records)
    pictures, own = _beside(source) if _is_apart(source, opened) else (None, "")
    asked: dict[str, Asked] = {}
    places: dict[str, str] = {}
    with progress("reading questions", count, quiet=quiet or count < MANY) as bar:

        def look(number: int, record: Record) -> Any:
            if one := _put(found, number, record, pictures):
                if one.id in asked:
                    problem = f"{record.place}: id {one.id} is also that of {places[one.id]}"
                    raise VictorError(problem, fix="leave one of the two out")
                asked[one.id], places[one.id] = one, record.place
            bar.advance()
            return record.value

        values = itertools.starmap(look, enumerate(opened.records))
        sha256 = opened.sha256
        if opened.sealed:
            deque(values, maxlen=0)
        else:
            sha256 = records.hash_of(itertools.chain([sha256], values))
    return [*asked.values()], records.hash_of([sha256, own]) if own else sha256


def _is_apart(source: Source, opened: Opened) -> bool:
    """Check that all columns are there; tell whether the pictures are not.

    A row of a table has all columns; elsewhere, rows may leave out what is empty.
    """
    found, read = source.benchmark, opened.records
    looked = read if isinstance(read, list) else itertools.islice(read, 1)
    there = {name for record in looked for name in _row(record)}
    shown = {*found.shown}
    if TAR in there and not there & shown:
        there |= shown
    if missing := [name for name in found.columns if name not in there]:
        problem = (
            f"{source.place}: no column {', '.join(missing)}; {found.title} has "
            f"{', '.join(found.columns)}; there: {', '.join(sorted(there)) or 'none'}"
        )
        fix = f"call the columns as {found.data.repo} does; or: {source.fix}"
        raise VictorError(problem, fix=fix)
    return found.beside is not None and found.beside.image not in there


def _beside(source: Source) -> tuple[Pictures, str]:
    """Find the pictures that are stored apart, by their names, and what identifies them."""
    beside, opened = source.benchmark.beside, source.open_beside()
    found: dict[str, tuple[Picture, ...]] = {}
    for record in opened.records:
        row = _columns(record, (beside.image,))
        if row.get(beside.id) is None or not row[beside.image]:
            fix = "give each picture a row with both"
            problem = f"no {beside.id} or no {beside.image}"
            raise BadRow("form", problem, fix=fix, place=record.place)
        found[str(row[beside.id])] = row[beside.image]
    return found, records.hash_of([opened.sha256, *found])


def _put(found: Benchmark, number: int, record: Record, pictures: Pictures | None) -> Asked | None:
    """Put the question of a row; None where it has none.

    Raises:
        BadRow: If it cannot be used.
    """
    row = dict.fromkeys(found.columns) | _columns(record, found.shown)
    try:
        if pictures is not None:
            row[found.beside.image] = _named(found.beside, row[found.beside.key], pictures)
        asked = found.ask(row)
        if asked is not None:
            _check(asked)
    except BadRow as error:
        raise error.at(record.place) from None
    return asked and replace(asked, id=asked.id or str(number), type=sys.intern(asked.type))


def _row(record: Record) -> dict[str, Any]:
    """Take a row's columns as they are.

    Raises:
        BadRow: If it has none.
    """
    if isinstance(record.value, BadRow):  # it could not even be read
        raise record.value
    if not isinstance(record.value, dict):
        raise BadRow("form", "not a row", fix="write each row as {...}", place=record.place)
    return record.value


def _columns(record: Record, shown: Sequence[str]) -> dict[str, Any]:
    """Take a row's columns, and close the pictures in those that show some.

    Raises:
        BadRow: If it has none, or a picture is not there.
    """
    row = _row(record)
    if all(row.get(name) is None for name in shown):
        row = row | dict(zip(shown, formats.listed(row.get(TAR)), strict=False))
    return row | {name: _closed(row.get(name), record) for name in shown}


def _closed(value: Any, record: Record) -> tuple[Picture, ...]:
    """List the pictures of a column.

    Raises:
        BadRow: If it holds something else, or a file is not there.
    """
    try:
        written = isinstance(value, str)
        files = formats.pictures({TAR: several({TAR: value}, TAR) if written else value})
    except BadRow as error:
        raise error.at(record.place) from None
    images = tuple(record.folder / file if isinstance(file, str) else file for file in files)
    check_files(images, record.place)
    return images


def _named(beside: Beside, name: Any, pictures: Pictures) -> tuple[Picture, ...]:
    if str(name) in pictures:
        return pictures[str(name)]
    fix = f"add it to {beside.data.config}, where {beside.id} is its name"
    raise BadRow("missing", f"no picture {beside.key} {name}", fix=fix)


def _check(asked: Asked) -> None:
    """Check that a question shows its pictures and can be marked."""
    places = asked.parts.count(IMAGE)
    if places != len(asked.images):
        fix = "correct its columns of pictures"
        problem = f"pictures in the question: {places}, in the row: {len(asked.images)}"
        raise BadRow("placeholders", problem, fix=fix)
    if not asked.answers:
        fix = "use the split whose answers are public"
        raise BadRow("answer", "no right answer is given", fix=fix)


def _first(found: Benchmark, asked: list[Asked], limit: int | None) -> list[Asked]:
    """Take the first questions, and where only whole units are marked, the rest of theirs."""
    first = asked[:limit]
    begun = {one.unit for one in first}
    return [one for one in asked if one.unit in begun] if found.whole_units else first


def _with_unit(asked: Asked) -> Asked:
    """Tell by their content which pictures are the same, where the data do not."""
    if asked.unit is not None:
        return asked
    digest = hashlib.sha256()
    for image in asked.images:
        digest.update(image.read_bytes() if isinstance(image, Path) else image.read())
    return replace(asked, unit=digest.hexdigest())
