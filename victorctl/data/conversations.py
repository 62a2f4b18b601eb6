"""Any supported data, as rows: pictures and the conversations about them."""

import functools
import itertools
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from victorctl.data import formats, records, scenes
from victorctl.data.formats import BadRow
from victorctl.data.records import Opened, Record, Spec
from victorctl.data.rows import Conversation, Row, Rows, check_files, check_opens
from victorctl.errors import VictorError
from victorctl.runtime import progress, say
from victorctl.sources import HUB_ID

SHOWN = 5  # bad rows that an error lists
MANY = 50_000  # rows that take seconds to read
DEMO = {  # spec: split, scenes, questions about each
    "demo": ("train", 20_000, 8),
    "demo:test": ("test", 500, 4),
}


def open_data(
    spec: str,
    *,
    rows: int | None = None,
    split: str | None = "train",
    skip_bad: bool = False,
    quiet: bool = True,
) -> Rows:
    """Open a data set; the form of every row is checked now, and that its pictures exist.

    Rows that show the same files of pictures become one, in the place of the first.

    Args:
        spec: See `docs/data.md`: "demo" (training scenes), "demo:test", a file, a folder, or a Hub
            id; of the latter two with an optional ":split".
        rows: Use only so many of the data, from the start; None for all.
        split: Used where several are there and none is named; None: one must be named.
        skip_bad: Leave bad rows out, also those whose pictures do not open.
        quiet: Do not say what was recognised.

    Returns:
        Rows in the order of the data.

    Raises:
        VictorError: If there are no such data, or one that cannot be read, or a row has no answer,
            not the pictures that it shows, or an unknown form.
    """
    if spec in DEMO:
        return _demo(spec, rows)
    if spec.startswith("demo:") and not Path(spec).exists():
        raise VictorError(f"{spec}: no such data", fix=f"use one of: {records.TAKEN}")
    opened = open_records(spec, rows, split)
    scan = scan_records(opened, quiet=quiet)
    if scan.problems and not skip_bad:
        raise _bad(spec, scan.problems)
    if skip_bad:
        _leave_out_closed(opened, scan, quiet=quiet)
    if not scan.groups:
        raise _bad(spec, scan.problems)
    form = f"{opened.form}: {scan.form}"
    say(f"{spec}: {form}; {len(opened.records)} rows", quiet=quiet)
    if scan.problems:
        count = f"{len(scan.problems)} of {len(opened.records)} rows are bad and left out"
        say(f"{count}:\n{first(scan.problems)}", quiet=quiet)

    def make(index: int) -> Row:
        return make_row(index, opened.records[index])

    table = list(scan.groups.values())
    return Rows(
        lambda number: _join([make(i) for i in table[number]]),
        len(table),
        sum(map(len, table)),
        [place for place, numbers in enumerate(table) if numbers[0] not in scan.texts],
        scan.sha256,
        form,
        tuple(scan.problems),
    )


def open_records(spec: str, rows: int | None, split: str | None) -> Opened:
    """Find data by name, and recognise how they are stored.

    Raises:
        VictorError: If there are none of that name, or none that can be read, or they are empty.
    """
    path = Path(spec).expanduser()
    name, colon, own = spec.rpartition(":")
    if path.exists() or not colon:
        name, own = spec, None
    known = Spec(name, own, split)
    if (path := Path(name).expanduser()).exists():
        opened = records.open_path(path, known, rows)
    elif _is_hub_id(name):
        from victorctl.data.tables import open_hub

        opened = open_hub(known, rows)
    else:
        raise VictorError(f"{spec}: no such data", fix=f"use one of: {records.TAKEN}")
    if not opened.records:
        raise VictorError(f"{spec}: holds no rows", fix="use data with at least one")
    return opened


def _is_hub_id(name: str) -> bool:
    """Tell OWNER/NAME, with a configuration or not, from the name of a file."""
    parts = name.split("/")
    if len(parts) > 3 or Path(name).suffix in (*records.KNOWN, ".yaml", ".yml"):
        return False
    return HUB_ID.fullmatch("/".join(parts[:2])) is not None


@dataclass
class Scan:
    """What a look at every record found.

    Args:
        groups: Numbers of good records by their files of pictures, else by their own number.
        texts: Numbers of those without pictures.
        problems: Of bad ones.
        sha256: See `Rows`.
        form: Of the rows, in words.
    """

    groups: dict[Hashable, list[int]] = field(default_factory=dict)
    texts: set[int] = field(default_factory=set)
    problems: list[BadRow] = field(default_factory=list)
    sha256: str = ""
    form: str = ""

    def add(self, index: int, row: Row) -> None:
        """Keep a good record; only files can be known to be the same without opening them."""
        files = all(isinstance(image, Path) for image in row.images)
        self.groups.setdefault(row.images if row.images and files else index, []).append(index)
        if not row.images:
            self.texts.add(index)


def scan_records(opened: Opened, *, quiet: bool = True) -> Scan:
    """Look at every record once, its pictures closed: which are good, and which belong together.

    Args:
        opened: The data.
        quiet: Show no progress; of few rows, none is shown anyway.
    """
    scan, count = Scan(), len(opened.records)
    with progress("reading rows", count, quiet=quiet or count < MANY) as bar:

        def look(index: int, record: Record) -> Any:
            try:
                row = make_row(index, record)
                check_files(row.images, record.place)
            except BadRow as error:
                scan.problems.append(error)
            else:
                scan.form = scan.form or formats.form(record.value).name
                scan.add(index, row)
            bar.advance()
            return record.value

        values = itertools.starmap(look, enumerate(opened.records))
        if opened.sealed:
            deque(values, maxlen=0)
            scan.sha256 = opened.sha256
        else:
            scan.sha256 = records.hash_of(itertools.chain([opened.sha256], values))
    return scan


def make_row(index: int, record: Record) -> Row:
    """Make a row of a record.

    Raises:
        BadRow: If that cannot be done.
    """
    if isinstance(record.value, BadRow):  # it could not even be read
        raise record.value
    try:
        files = formats.pictures(record.value)
        messages = formats.messages(record.value, len(files))
        asks = formats.form(record.value) is formats.FORMS["question"]
        accepted = formats.answers(record.value) if asks else ()
    except BadRow as error:
        raise error.at(record.place) from None
    value = record.value
    names = (value.get(key) for key in ("id", "question_id"))
    name = next((name for name in names if name is not None), index)
    type_ = value.get("type") or value.get("category") or "all"
    conversation = Conversation(messages, str(type_), accepted, str(name))
    images = (record.folder / file if isinstance(file, str) else file for file in files)
    return Row(str(name), tuple(images), (conversation,))


def _demo(spec: str, rows: int | None) -> Rows:
    split, size, questions = DEMO[spec]
    make = functools.partial(_scene_row, split=split, questions=questions)
    size = len(range(size)[:rows])
    return Rows(make, size, size * questions, range(size), "", "drawn scenes with questions")


def _scene_row(number: int, *, split: str, questions: int) -> Row:
    scene = scenes.scene(number, split)
    conversations = tuple(
        Conversation(formats.question(asked.text, asked.answer, images=1), asked.type)
        for asked in scene.questions(questions)
    )
    return Row(f"{split}-{number}", (scene.picture,), conversations)


def _join(rows: Sequence[Row]) -> Row:
    """Make one row of those about the same pictures; names that do not tell them apart are lost."""
    said = [conversation for row in rows for conversation in row.conversations]
    if len({conversation.id for conversation in said}) < len(said):
        said = [replace(conversation, id="") for conversation in said]
    return replace(rows[0], conversations=tuple(said))


def _leave_out_closed(opened: Opened, scan: Scan, *, quiet: bool) -> None:
    """Turn records whose pictures do not open into problems."""
    with progress("checking pictures", len(scan.groups), quiet=quiet) as bar:
        for key, numbers in list(scan.groups.items()):
            try:
                for image in make_row(numbers[0], opened.records[numbers[0]]).images:
                    check_opens(image)
            except BadRow as error:
                del scan.groups[key]
                scan.problems += [error.at(opened.records[number].place) for number in numbers]
            bar.advance()


def first(problems: Sequence[BadRow], count: int = SHOWN) -> str:
    """List the first bad rows, and say how many more there are."""
    lines = [f"{one.problem}" for one in problems[:count]]
    more = len(problems) - count
    return "\n".join([*lines, *([f"and {more} more"] if more > 0 else [])])


def _bad(spec: str, problems: Sequence[BadRow]) -> VictorError:
    fix = (
        f"{problems[0].fix}; victorctl data check {spec} lists what is bad (finetune can leave it "
        "out: --skip-bad)"
    )
    return VictorError(first(problems), fix=fix)
