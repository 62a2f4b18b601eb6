"""Rows: pictures, closed until they are needed, and the conversations about them."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps

from victorctl.data import formats
from victorctl.data.formats import BadRow
from victorctl.data.records import Embedded

Picture = Path | Embedded | Image.Image | Callable[[], Image.Image]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures and the conversations that share them.

    Args:
        id: Name of the row in its data.
        images: Files, pictures, where one is stored, or functions that draw one; none is opened
            before `pictures`.
        conversations: Each shows all the pictures, in their order.
    """

    id: str
    images: tuple[Picture, ...]
    conversations: tuple[Conversation, ...]

    def pictures(self) -> list[Image.Image]:
        """Open the pictures, upright and in RGB.

        Raises:
            VictorError: If a file is not a picture.
        """
        return [open_picture(image) for image in self.images]


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows that are made when they are asked for.

    Args:
        make: Makes one from its number.
        size: How many there are.
        conversations: How many all of them hold.
        pictured: Numbers of those that have pictures; each of the others is one conversation.
        sha256: Identifies the data; of one file of text, its hash; "" if they are drawn.
        form: What the data were recognised as, in words.
        problems: Of rows that were left out.
    """

    make: Callable[[int], Row]
    size: int
    conversations: int
    pictured: Sequence[int]
    sha256: str
    form: str = ""
    problems: tuple[BadRow, ...] = ()

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


def open_picture(image: Picture) -> Image.Image:
    """Open a picture, upright and in RGB.

    Raises:
        BadRow: If it is none that can be read.
    """
    if not isinstance(image, Path | Embedded):
        return (image() if callable(image) else image).convert("RGB")
    with _reading(image) as source, Image.open(source) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def check_files(images: Sequence[Picture], place: str) -> None:
    """Check that pictures exist.

    Args:
        images: Only those that are files can be missing.
        place: Where the data name them.

    Raises:
        BadRow: If a file does not.
    """
    for file in images:
        if isinstance(file, Path) and not _is_file(file):
            fix = "correct the path; it is relative to the data file"
            raise BadRow("missing", f"no such picture: {file}", fix=fix, place=place)


def _is_file(file: Path) -> bool:
    """Tell whether a file is there; a name that no file can have is none."""
    try:
        return file.is_file()
    except OSError:
        return False


def check_opens(image: Picture) -> None:
    """Read the head of a picture, but not what follows.

    Raises:
        BadRow: If it is none that can be read.
    """
    if isinstance(image, Path | Embedded):
        with _reading(image) as source, Image.open(source):
            pass


@contextmanager
def _reading(image: Path | Embedded) -> Iterator[Path | io.BytesIO]:
    """Yield what a picture is read from; let one that cannot be read be an error that names it."""
    try:
        yield image if isinstance(image, Path) else io.BytesIO(image.read())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fix = (
            "replace it with a picture, or remove its row; with rows removed, an interrupted "
            "finetune cannot go on: start it again with --overwrite"
        )
        raise BadRow("broken", f"{image}: not a readable picture: {error}", fix=fix) from error
