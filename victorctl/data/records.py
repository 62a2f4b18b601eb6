"""Where rows are: files and folders are recognised, and read into records."""

import csv
import functools
import hashlib
import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from victorctl import weights
from victorctl.data import formats
from victorctl.errors import VictorError

SPLITS = {  # words in the names of files, and the split that they belong to
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
METADATA = ("metadata.jsonl", "metadata.csv")  # beside pictures, whose file_name they give
NO_ROWS = ("dataset_info.json", "dataset_infos.json")  # tell about a data set

LONGEST_CELL = 2**31 - 1  # letters of a CSV's cell


@dataclass(frozen=True, slots=True)
class Embedded:
    """A picture stored in the data, and not in a file of its own.

    Args:
        name: Where it is; equal names are the same picture.
        read: Returns its bytes.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False)

    def __str__(self) -> str:
        return self.name


class Record(NamedTuple):
    """One row as its data have it.

    Args:
        place: Where it stands, for messages.
        value: Its columns; an error where it could not be read.
        folder: What names of files in it are relative to.
    """

    place: str
    value: Any
    folder: Path


class Opened(NamedTuple):
    """Data whose form is known.

    Args:
        records: In their order.
        form: How they are stored, in words.
        sha256: Identifies them.
        sealed: Whether it covers the texts, or only names and sizes of files.
    """

    records: Sequence[Record]
    form: str
    sha256: str
    sealed: bool = True


class Spec(NamedTuple):
    """What data a name stands for.

    Args:
        name: As it was typed, without the split.
        split: That was named behind a colon; None without one.
        usual: Used of several where none was named; None: one must be named.
        loose: Take data that tell of no splits for the split that was named.
    """

    name: str
    split: str | None
    usual: str | None
    loose: bool = False

    def refuse_split(self) -> None:
        """Refuse the name of a split where there is none.

        Raises:
            VictorError: If one was named.
        """
        if self.split and not self.loose:
            problem = f"{self.name}: has no splits, and '{self.split}' was asked for"
            raise VictorError(problem, fix=f"name it without: {self.name}")

    def choose(self, known: Sequence[str]) -> str:
        """Choose a split.

        Raises:
            VictorError: If it is not there, or several are and none was named.
        """
        wanted = self.split or (known[0] if len(known) == 1 else self.usual)
        if wanted in known:
            return wanted
        problem = f"no split '{wanted}'" if self.split else "several splits"
        fix = f"use one of: {', '.join(f'{self.name}:{split}' for split in known)}"
        if self.loose:
            fix = f"let the names of its files say {self.split}; there: {', '.join(known)}"
        raise VictorError(f"{self.name}: {problem}", fix=fix)


def open_path(path: Path, spec: Spec, rows: int | None) -> Opened:
    """Open a file or a folder.

    Args:
        path: It exists.
        spec: Says which split, where a folder has several.
        rows: Read only so many, from the start.

    Raises:
        VictorError: If it holds no data of a known form, or cannot be read.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        from victorctl.data.tables import open_saved

        return open_saved(path, spec, rows)
    suffix, files = _files(path, spec)
    if suffix == ".parquet":
        from victorctl.data.tables import open_parquet

        return open_parquet(files, rows)
    storage = STORAGES[suffix]
    found = itertools.chain.from_iterable(map(storage.read, files))
    records = list(itertools.islice(found, rows))
    form = storage.name if len(files) == 1 else f"{len(files)} files of {storage.name}"
    if files[0].name in METADATA:
        form = f"folder of pictures with {files[0].name}"
    return Opened(records, form, storage.identify(files, records))


def hash_of(parts: Iterable[Any]) -> str:
    """Hash what JSON can write; a picture counts as its presence, since its bytes stay unread."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=lambda _: "picture").encode())
    return digest.hexdigest()


def sizes(files: Sequence[Path]) -> list[tuple[str, int]]:
    """Name files and their sizes."""
    return [(file.name, file.stat().st_size) for file in files]


# Folders


def _files(path: Path, spec: Spec) -> tuple[str, list[Path]]:
    """List the files that hold rows, all of one kind, and of one split."""
    if path.is_file():
        return _suffix(path, spec), [path]
    there = [file for file in sorted(path.rglob("*")) if _counts(file, path)]
    described = [file for file in there if file.name in METADATA]
    files = described or [file for file in there if file.suffix in KNOWN]
    kinds = sorted({file.suffix for file in files})
    if not kinds:
        fix = "pictures need a metadata.jsonl or metadata.csv with their file_name; else use one "
        raise VictorError(f"{path}: a folder without data", fix=f"{fix}of: {TAKEN}")
    if len(kinds) > 1:
        fix = f"name one file, or put them into folders of their own: {files[0]}"
        raise VictorError(f"{path}: holds files of several forms: {', '.join(kinds)}", fix=fix)
    told = {file: _split(file.relative_to(path), spec.split) for file in files}
    if spec.loose and not any(told.values()):
        return kinds[0], files
    if exact := [file for file in files if (told[file] or "train") == spec.split]:
        return kinds[0], exact  # and none of another name for it
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(SPLITS.get(told[file], "train"), []).append(file)
    return kinds[0], splits[spec.choose([*splits])]


def _suffix(path: Path, spec: Spec) -> str:
    """Check that a file is of a known form, and that no split of it was asked for."""
    if path.suffix in (".yaml", ".yml"):
        fix = "name one data set of it, or finetune with it"
        raise VictorError(f"{path}: a mixture, which is for training", fix=fix)
    if path.suffix not in KNOWN:
        raise VictorError(f"{path}: not data that can be read", fix=f"use one of: {TAKEN}")
    spec.refuse_split()
    return path.suffix


def _counts(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.name not in NO_ROWS


def _split(name: Path, wanted: str | None) -> str | None:
    """Find the first word for a split, or the very one, in a file's name and its folders'."""
    words = re.split(r"[^a-z]+", name.with_suffix("").as_posix().lower())
    return next((word for word in words if word in SPLITS or word == wanted), None)


# Files: each function yields records.


def read_json(path: Path) -> Iterator[Record]:
    """Read a list of rows."""
    text = _read_text(path)
    found = _parse(text, path, 1) if text.strip() else []
    if isinstance(found, VictorError):
        raise found
    if not isinstance(found, list):
        raise VictorError(f"{path}: holds no list of rows", fix="write it as [{...}, {...}]")
    yield from (Record(f"{path}[{i}]", one, path.parent) for i, one in enumerate(found))


def read_jsonl(path: Path) -> Iterator[Record]:
    """Read one row from each line; a broken line is a bad row."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield Record(f"{path}:{number}", _parse(line, path, number), path.parent)


def read_csv(path: Path) -> Iterator[Record]:
    """Read a table with a line of names at its top; an empty cell is none."""
    csv.field_size_limit(LONGEST_CELL)
    lines = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        for line in lines:
            cells = {name: cell for name, cell in line.items() if name and cell}
            yield Record(f"{path}:{lines.line_num}", cells, path.parent)
    except csv.Error as error:
        problem = f"{path}:{lines.line_num}: not CSV: {error}"
        raise VictorError(problem, fix="correct that line") from error


def read_tar(path: Path) -> Iterator[Record]:
    """Read a WebDataset: files of one name, but for the suffix, are one row; pictures stay there.

    Raises:
        VictorError: If it is no tar, or is compressed.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            _check_end(path)
            parts = [(*_key(part.name), part) for part in archive if part.isfile()]
            for key, group in itertools.groupby(parts, key=lambda part: part[0]):
                files = {suffix: _content(archive, path, part) for _, suffix, part in group}
                value = next((f for f in files.values() if isinstance(f, VictorError)), None)
                value = value or formats.sample({"__key__": key, **files})
                yield Record(f"{path}:{key}", value, path.parent)
    except tarfile.TarError as error:
        fix = "write an uncompressed tar; gunzip a compressed one"
        raise VictorError(f"{path}: not a tar that can be read: {error}", fix=fix) from error


def _key(name: str) -> tuple[str, str]:
    """Cut a name at the first dot after its folder, as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _content(archive: tarfile.TarFile, path: Path, part: tarfile.TarInfo) -> Any:
    """Read a text; of a picture, remember where it is."""
    kind = part.name.rpartition(".")[2].lower()
    if kind in formats.SUFFIXES:
        where = functools.partial(_bytes, path, part.offset_data, part.size)
        return Embedded(f"{path}:{part.name}", where)
    if kind not in ("json", "txt"):
        return None
    text = archive.extractfile(part).read().decode("utf-8-sig", "replace")
    return text.strip() if kind == "txt" else _parse(text, Path(f"{path}:{part.name}"), 1)


def _bytes(path: Path, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VictorError(f"{path}: not UTF-8: {error}", fix="save it as UTF-8") from error


def _parse(text: str, path: Path, line: int) -> Any:
    """Read JSON; what is none becomes an error that says where."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fix = "correct that line (a file with one row in each line is called .jsonl)"
        place = f"{path}:{line + error.lineno - 1}"
        return formats.BadRow("json", f"not JSON: {error.msg}", fix=fix, place=place)
    except (RecursionError, ValueError) as error:  # nested too deep, or a number too long
        fix = "correct that line"
        return formats.BadRow("json", f"not JSON: {error}", fix=fix, place=f"{path}:{line}")


def _check_end(path: Path) -> None:
    """Refuse a tar that is cut short, which tarfile takes for a shorter one."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
        if any(file.read()):
            raise VictorError(f"{path}: cut short", fix="download or write it again")


def _hash_texts(files: Sequence[Path], _records: Sequence[Record]) -> str:
    """Hash files of text; several with their names."""
    hashes = [weights.sha256(file) for file in files]
    named = [[file.name, own] for file, own in zip(files, hashes, strict=True)]
    return hashes[0] if len(files) == 1 else hash_of(named)


def _hash_tars(files: Sequence[Path], records: Sequence[Record]) -> str:
    """Hash names and sizes of tars, and every text in them."""
    return hash_of([sizes(files), *(record.value for record in records)])


class Storage(NamedTuple):
    """A form of files.

    Args:
        name: In words.
        read: Yields the records of one.
        identify: Hashes what identifies several.
    """

    name: str
    read: Callable[[Path], Iterator[Record]]
    identify: Callable[[Sequence[Path], Sequence[Record]], Hashable]


STORAGES = {
    ".json": Storage("JSON", read_json, _hash_texts),
    ".jsonl": Storage("JSON lines", read_jsonl, _hash_texts),
    ".csv": Storage("CSV", read_csv, _hash_texts),
    ".tar": Storage("WebDataset", read_tar, _hash_tars),
}
KNOWN = (*STORAGES, ".parquet")
TAKEN = (
    "demo, demo:test, a file (.json, .jsonl, .csv, .tar, .parquet) or a folder of them, "
    "a folder of save_to_disk, OWNER/NAME on the Hub"
)
