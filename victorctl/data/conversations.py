"""Any supported data, as rows: pictures and the conversations about them."""

import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from victorctl import weights
from victorctl.data import formats, scenes
from victorctl.errors import VictorError

DEMO = {  # spec: split, scenes, questions about each
    "demo": ("train", 20_000, 8),
    "demo:test": ("test", 500, 4),
}


@dataclass(frozen=True)
class Conversation:
    """Turns in the form that chat templates take; the last one is an answer.

    Args:
        messages: `{"role": ..., "content": [{"type": "image"}, {"type": "text", "text": ...}]}`.
        type: Kind of question; "all" where the data does not say.
        accepted: Every right answer, where the data names several.
        id: Its own name in the data; "" without one.
    """

    messages: tuple[formats.Message, ...]
    type: str = "all"
    accepted: tuple[str, ...] = ()
    id: str = ""

    @property
    def question(self) -> str:
        """Text of the turn before the last answer."""
        return formats.text_of(self.messages[-2])

    @property
    def answers(self) -> tuple[str, ...]:
        """Right answers to that question, at least one."""
        return self.accepted or (formats.text_of(self.messages[-1]),)


@dataclass(frozen=True)
class Row:
    """Pictures and the conversations that share them.

    Args:
        id: Name of the row in its data.
        images: Files, pictures, or functions that draw one; none is opened before `pictures`.
        conversations: Each shows all the pictures, in their order.
    """

    id: str
    images: tuple[Path | Image.Image | Callable[[], Image.Image], ...]
    conversations: tuple[Conversation, ...]

    def pictures(self) -> list[Image.Image]:
        """Open the pictures, upright and in RGB.

        Raises:
            VictorError: If a file is not a picture.
        """
        return [_open(image) for image in self.images]


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows that are made when they are asked for.

    Args:
        make: Makes one from its number.
        size: How many there are.
        conversations: How many all of them hold.
        pictured: Numbers of those that have pictures; each of the others is one conversation.
        sha256: Hash of the file that they are read from; "" if they are drawn.
    """

    make: Callable[[int], Row]
    size: int
    conversations: int
    pictured: Sequence[int]
    sha256: str

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Make one row, or the list of rows of a slice."""
        place = range(self.size)[index]
        return [self.make(i) for i in place] if isinstance(place, range) else self.make(place)

    def with_pictures(self) -> "Rows":
        """Leave out the rows of text."""
        count = len(self.pictured)
        return replace(
            self,
            make=lambda index: self.make(self.pictured[index]),
            size=count,
            conversations=self.conversations - (self.size - count),
            pictured=range(count),
        )


def open_data(spec: str, *, rows: int | None = None) -> Rows:
    """Open a data set; the form of every row is checked now, and that its pictures exist.

    Rows of a file that show the same pictures become one, in the place of the first.

    Args:
        spec: "demo" (training scenes), "demo:test", or a .json or .jsonl file, whose picture
            paths are relative to it.
        rows: Use only so many of the data, from the start; None for all.

    Returns:
        Rows in the order of the data.

    Raises:
        VictorError: If there is no such file, it is not JSON, or a row has no answer, not the
            pictures that it shows, or an unknown form.
    """
    if spec in DEMO:
        split, size, questions = DEMO[spec]
        make = functools.partial(_scene_row, split=split, questions=questions)
        size = len(range(size)[:rows])
        return Rows(make, size, size * questions, range(size), "")
    path = Path(spec).expanduser()
    if not path.is_file() or path.suffix not in formats.FILES:
        known = ", ".join([*DEMO, *(f"a {suffix} file" for suffix in formats.FILES)])
        problem = "not data that can be read" if path.exists() else "no such data"
        raise VictorError(f"{spec}: {problem}", fix=f"use one of: {known}")
    records = list(itertools.islice(formats.FILES[path.suffix](path), rows))
    if not records:
        raise VictorError(f"{path}: holds no rows", fix="use a file with at least one")

    def make(index: int) -> Row:
        return _record_row(index, *records[index], path.parent)

    groups: dict[Hashable, list[int]] = {}  # pictures, or a text's own number: their records
    for index, (place, _) in enumerate(records):
        row = make(index)
        _check_files(row, place)
        groups.setdefault(row.images or index, []).append(index)
    table = list(groups.values())
    return Rows(
        lambda number: _join([make(i) for i in table[number]]),
        len(table),
        len(records),
        [number for number, shown in enumerate(groups) if not isinstance(shown, int)],
        weights.sha256(path),
    )


def _scene_row(number: int, *, split: str, questions: int) -> Row:
    scene = scenes.scene(number, split)
    conversations = tuple(
        Conversation(formats.question(asked.text, asked.answer, images=1), asked.type)
        for asked in scene.questions(questions)
    )
    return Row(f"{split}-{number}", (scene.picture,), conversations)


def _record_row(index: int, place: str, record: Any, folder: Path) -> Row:
    try:
        files = _files(record)
        messages = formats.messages(record, len(files))
    except VictorError as error:
        raise VictorError(f"{place}: {error.problem}", fix=error.fix) from None
    name = next((record[key] for key in ("id", "question_id") if key in record), index)
    type_ = record.get("type") or record.get("category") or "all"
    accepted = tuple(str(answer) for answer in formats.listed(record.get("answers")))
    conversation = Conversation(messages, str(type_), accepted, str(name))
    return Row(str(name), tuple(folder / file for file in files), (conversation,))


def _join(rows: Sequence[Row]) -> Row:
    """Make one row of those about the same pictures; names that do not tell them apart are lost."""
    said = [conversation for row in rows for conversation in row.conversations]
    if len({conversation.id for conversation in said}) < len(said):
        said = [replace(conversation, id="") for conversation in said]
    return replace(rows[0], conversations=tuple(said))


def _files(record: Any) -> list[str]:
    """List the picture files of a record; none makes it a row of text."""
    found = (record.get("images") or record.get("image")) if isinstance(record, dict) else None
    files = formats.listed(found)
    if not all(isinstance(file, str) for file in files):
        raise VictorError(f"not a list of picture files: {found!r}", fix="name files as text")
    return files


def _check_files(row: Row, place: str) -> None:
    for file in row.images:
        if not file.is_file():
            fix = "correct the path; it is relative to the data file"
            raise VictorError(f"{place}: no such picture: {file}", fix=fix)


def _open(image: Path | Image.Image | Callable[[], Image.Image]) -> Image.Image:
    if not isinstance(image, Path):
        return (image() if callable(image) else image).convert("RGB")
    try:
        with Image.open(image) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fix = (
            "replace the file with a picture, or remove its row; with rows removed, an interrupted "
            "finetune cannot go on: start it again with --overwrite"
        )
        raise VictorError(f"{image}: not a readable picture: {error}", fix=fix) from error
