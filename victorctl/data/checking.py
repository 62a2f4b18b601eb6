"""`victorctl data check`: count what data hold, and list every row that cannot be used."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from victorctl import checkpoint
from victorctl.data.batches import encode
from victorctl.data.conversations import DEMO, make_row, open_data, open_records, scan_records
from victorctl.data.formats import KINDS, BadRow
from victorctl.data.mixtures import parts
from victorctl.data.records import Embedded, hash_of
from victorctl.data.rows import Conversation, Picture, Row, open_picture
from victorctl.errors import CheckFailed, VictorError
from victorctl.runtime import progress
from victorctl.sections import DataSection
from victorctl.sources import open_source

AT_ONCE = 64  # rows whose pictures are decoded side by side
SHOWN = 10  # bad rows that a person is shown


@dataclass(frozen=True)
class Reader:
    """What turns rows into tokens.

    Args:
        processor: The model's.
        context: Longest text that the model was made for, in tokens.
    """

    processor: Any
    context: int


@dataclass
class Tally:
    """What was counted so far."""

    forms: list[str] = field(default_factory=list)
    rows: int = 0
    conversations: int = 0
    turns: int = 0
    pictures: int = 0
    text_only: int = 0
    problems: list[BadRow] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """The first place of each conversation, by a hash of it and its pictures."""
    same: list[dict[str, str]] = field(default_factory=list)

    def add(self, conversation: Conversation, place: str, pictures: str) -> None:
        """Count a good conversation."""
        self.conversations += 1
        self.turns += len(conversation.messages)
        found = self.places.setdefault(hash_of([pictures, conversation.messages]), place)
        if found != place:
            self.same.append({"place": place, "same_as": found})


def check(
    data: str, *, rows: int | None = None, model: str | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Look at every row, and decode every picture.

    Args:
        data: As for `finetune --data`, or `demo:test`.
        rows: Look only at so many, from the start.
        model: Folder or Hub id; conversations are then turned into its tokens.
        quiet: Show no progress.

    Returns:
        The keys of `data check --json`.

    Raises:
        VictorError: If there are no such data, or no such model.
    """
    reader = None if model is None else open_reader(model)
    tally = Tally()
    for name in parts(DataSection(train=data)):
        _check(name, rows, reader, tally, quiet=quiet)
    counts = Counter(problem.kind for problem in tally.problems)
    result = {
        "data": data,
        "form": " + ".join(tally.forms),
        "rows": tally.rows,
        "conversations": tally.conversations,
        "turns": tally.turns,
        "pictures": tally.pictures,
        "text_only": tally.text_only,
        "duplicates": len(tally.same),
        "bad": len(tally.problems),
        "kinds": {kind: counts[kind] for kind in KINDS if counts[kind]},
    }
    if reader and tally.lengths:
        lengths = {"mean": fmean(tally.lengths), "longest": max(tally.lengths)}
        result["tokens"] = lengths | {"context": reader.context}
    listed = [
        {"place": one.place, "kind": one.kind, "problem": one.reason} for one in tally.problems
    ]
    return result | {"problems": listed, "same": tally.same}


def open_reader(model: str) -> Reader:
    """Load what a model reads text and pictures with; no weights.

    Raises:
        VictorError: If there is no such model.
    """
    source = open_source(model)
    text = checkpoint.load_config(source.folder).get_text_config()
    return Reader(
        checkpoint.load_processor(source.folder, source.name), text.max_position_embeddings
    )


def demand(result: Mapping[str, Any]) -> None:
    """Refuse data with bad rows.

    Raises:
        CheckFailed: If there are any.
    """
    if result["bad"]:
        raise CheckFailed(
            f"{result['data']}: {result['bad']} of {result['rows']} rows are bad",
            fix="correct or remove them (--json lists all), or leave them out: finetune --skip-bad",
        )


def table(result: Mapping[str, Any]) -> RenderableType:
    """Show the counts, and the first of what is bad or double."""
    counts = {"text_only": "without pictures", "bad": "bad rows"}
    plain = [(key, value) for key, value in result.items() if isinstance(value, int)]
    lines = [f"{result['data']}: {result['form']}"]
    lines += [f"{counts.get(key, key):<18}{value:,}" for key, value in plain]
    lines += [f"  {KINDS[kind]:<45}{count:,}" for kind, count in result["kinds"].items()]
    if "tokens" in result:
        words = "tokens            {mean:.0f} in the mean, {longest} at the most, of {context}"
        lines.append(words.format(**result["tokens"]))
    lines += _first([f"{one['place']}: {one['problem']}" for one in result["problems"]])
    lines += _first([f"{one['place']}: the same as {one['same_as']}" for one in result["same"]])
    return Group(*(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def _first(lines: Sequence[str]) -> list[str]:
    """Put an empty line before some, and leave out those that are too many."""
    more = [f"and {len(lines) - SHOWN} more: --json lists all"] if len(lines) > SHOWN else []
    return ["", *lines[:SHOWN], *more] if lines else []


def _check(
    name: str, rows: int | None, reader: Reader | None, tally: Tally, *, quiet: bool
) -> None:
    """Count one data set, picture after picture."""
    size, form, units = _units(name, rows, tally, quiet=quiet)
    tally.forms.append(form)
    with progress(f"checking {name}", size, quiet=quiet) as bar, ThreadPoolExecutor() as pool:
        while several := list(islice(units, AT_ONCE)):
            pictures = [image for row, _ in several for image in row.images]
            seen = iter(list(pool.map(_look, pictures)))
            for row, places in several:
                _count(row, places, list(islice(seen, len(row.images))), reader, tally)
                bar.advance()


def _units(
    name: str, rows: int | None, tally: Tally, *, quiet: bool
) -> tuple[int, str, Iterator[tuple[Row, list[str]]]]:
    """Say how many rows are to be looked at, their form, and yield each with its places."""
    if name in DEMO:
        drawn = open_data(name, rows=rows)
        tally.rows += len(drawn)
        named = ((row, [f"{row.id}/{n}" for n in range(len(row.conversations))]) for row in drawn)
        return len(drawn), drawn.form, named
    opened = open_records(name, rows, "train")
    scan = scan_records(opened, quiet=quiet)
    tally.rows += len(opened.records)
    tally.problems += scan.problems

    def join(numbers: Sequence[int]) -> tuple[Row, list[str]]:
        records = [opened.records[number] for number in numbers]
        made = [make_row(*pair) for pair in zip(numbers, records, strict=True)]
        said = tuple(conversation for row in made for conversation in row.conversations)
        return replace(made[0], conversations=said), [record.place for record in records]

    form = f"{opened.form}: {scan.form}" if scan.form else opened.form
    return len(scan.groups), form, map(join, scan.groups.values())


def _look(image: Picture) -> str | BadRow:
    """Decode a picture, and hash it as it is stored; a drawn one has no hash."""
    try:
        open_picture(image)
    except BadRow as error:
        return error
    if isinstance(image, Path | Embedded):
        stored = image.read_bytes() if isinstance(image, Path) else image.read()
        return hashlib.sha256(stored).hexdigest()
    return ""


def _count(
    row: Row,
    places: Sequence[str],
    seen: Sequence[str | BadRow],
    reader: Reader | None,
    tally: Tally,
) -> None:
    """Count a row, whose pictures were looked at."""
    broken = next((one for one in seen if isinstance(one, BadRow)), None)
    if broken:
        tally.problems += [broken.at(place) for place in places]
        return
    tally.pictures += len(row.images)
    tally.text_only += not row.images
    hashes = "".join(seen) or (row.id if row.images else "")
    read = _read(row, reader) if reader else [None] * len(places)
    tally.lengths += [length for length in read if isinstance(length, int)]
    for conversation, place, length in zip(row.conversations, places, read, strict=True):
        bad = _too_long(length, reader) if isinstance(length, int) else length
        if bad:
            tally.problems.append(bad.at(place))
        else:
            tally.add(conversation, place, hashes)


def _read(row: Row, reader: Reader) -> list[int | BadRow]:
    """Count the tokens of each conversation, or say why it has none."""
    try:
        return [len(said.input_ids) for said in encode(row, reader.processor).conversations]
    except VictorError as error:
        if len(row.conversations) == 1:
            return [BadRow("template", error.problem.partition(": ")[2], fix=error.fix)]
    alone = [replace(row, conversations=(conversation,)) for conversation in row.conversations]
    return [_read(one, reader)[0] for one in alone]


def _too_long(length: int, reader: Reader) -> BadRow | None:
    if length <= reader.context:
        return None
    problem = f"{length} tokens, more than the {reader.context} that the model was made for"
    return BadRow("long", problem, fix="shorten it: nothing is ever cut")
