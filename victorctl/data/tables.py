"""Data that `datasets` reads: parquet, folders of `save_to_disk`, and the Hub. No code is run."""

import bisect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from victorctl import hub
from victorctl.data import formats
from victorctl.data.records import Embedded, Opened, Record, Spec, hash_of, sizes
from victorctl.errors import VictorError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, IterableDataset

BATCH = 1000  # rows read at once when all are looked at


class Cell(NamedTuple):
    """Reads a stored picture; there is one for each, so it is small.

    Args:
        pictures: Columns of pictures.
        index: Of the row.
        column: Its name.
        number: Among several in one cell.
    """

    pictures: "Dataset"
    index: int
    column: str
    number: int

    def __call__(self) -> bytes:
        """Read its bytes."""
        from pyarrow import ListScalar

        cell = self.pictures[self.index : self.index + 1].column(self.column)[0]
        stored = (cell[self.number] if isinstance(cell, ListScalar) else cell).as_py()
        return stored["bytes"] if isinstance(stored, dict) else stored


class Table(Sequence[Record]):
    """Rows of a data set on disk; texts are read when asked for, pictures stay closed.

    Args:
        dataset: Its rows, in the order of its files.
        place: Names a row for messages.
        folder: What names of files in it are relative to.
    """

    def __init__(self, dataset: "Dataset", place: Callable[[int], str], folder: Path) -> None:
        schema = dataset.data.schema
        stored = [name for name in dataset.column_names if _is_stored(schema.field(name).type)]
        self._size, self._place, self._folder = len(dataset), place, folder
        self._stored = stored
        self._texts = dataset.remove_columns(stored)
        self._pictures = dataset.select_columns(stored).with_format("arrow")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        return next(self._records(index, index + 1))

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, self._size, BATCH):
            yield from self._records(start, min(start + BATCH, self._size))

    def _records(self, start: int, stop: int) -> Iterator[Record]:
        texts = self._texts[start:stop] if self._texts.column_names else {}
        shown = self._pictures[start:stop] if self._stored else None
        entries = {name: _entries(shown.column(name)) for name in self._stored}
        for row in range(stop - start):
            index = start + row
            value = {name: column[row] for name, column in texts.items()}
            for name, column in entries.items():
                value[name] = [
                    self._picture(index, name, number) if path is None else path
                    for number, path in column[row]
                ]
            yield Record(self._place(index), formats.sample(value), self._folder)

    def _picture(self, index: int, column: str, number: int) -> Embedded:
        name = f"{self._place(index)}, {column}" + (f" {number + 1}" if number else "")
        return Embedded(name, Cell(self._pictures, index, column, number))


def open_parquet(files: Sequence[Path], rows: int | None) -> Opened:
    """Open parquet files; `datasets` keeps their rows in its cache, for random access.

    Args:
        files: Of the same columns.
        rows: Keep only so many, from the start.

    Raises:
        VictorError: If one cannot be read.
    """
    ends = list(itertools.accumulate(_length(file) for file in files))

    def place(index: int) -> str:
        number = bisect.bisect_right(ends, index)
        return f"{files[number]}[{index - (ends[number - 1] if number else 0)}]"

    names = [str(file) for file in files]
    with _explained(str(files[0])):
        if rows is None or rows >= ends[-1]:
            table = _load("parquet", data_files=names)
        else:
            changed = [[str(file.resolve()), file.stat().st_mtime_ns] for file in files]
            table = _first(_load("parquet", data_files=names, streaming=True), rows, changed)
    count = f"{len(files)} parquet files" if len(files) > 1 else "parquet"
    return Opened(Table(table, place, files[0].parent), count, hash_of([sizes(files)]), False)


def open_saved(folder: Path, spec: Spec, rows: int | None) -> Opened:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        VictorError: If it cannot be read, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    with _explained(str(folder)):
        found = load_from_disk(str(folder))
    if isinstance(found, DatasetDict):
        split = spec.choose([*found])
        table = found[split]
    else:
        spec.refuse_split()
        split, table = "", found
    home = folder / split
    table = table.select(range(min(len(table), len(table) if rows is None else rows)))
    own = sizes(sorted(home.glob("*.arrow")))
    records = Table(table, lambda index: f"{home}[{index}]", folder)
    return Opened(records, "Arrow, written by save_to_disk", hash_of([own]), False)


def open_hub(spec: Spec, rows: int | None) -> Opened:
    """Open a data set on the Hub, `OWNER/NAME` or `OWNER/NAME/CONFIGURATION`.

    It is fetched whole; of its first rows alone, no more than they need.

    Raises:
        VictorError: If the Hub does not give it, or its form is none that `datasets` reads.
    """
    from datasets import load_dataset_builder
    from datasets.data_files import DataFilesDict

    hub.endpoint()  # refuse one that could be read on the way
    owner, name, *config = spec.name.split("/")
    repo, config = f"{owner}/{name}", config[0] if config else None
    with hub.explained(repo), _explained(spec.name):
        builder = load_dataset_builder(repo, config)
        split = spec.choose([str(split) for split in builder.config.data_files])
        known = [repo, builder.config.name, split, builder.hash]  # the commit
        how = {
            "name": builder.config.name,
            "split": split,
            "revision": builder.hash,
            "data_files": DataFilesDict({split: builder.config.data_files[split]}),
            "features": builder.info.features,  # which the card gives, but not for named files
        }
        table = _load(repo, **how) if rows is None else None
        table = table or _first(_load(repo, **how, streaming=True), rows, known)
    place = f"{spec.name}:{split}"
    records = Table(table, lambda index: f"{place}[{index}]", Path())
    return Opened(records, f"split {split} of {repo} on the Hub", hash_of([known]), False)


def _load(path: str, split: str = "train", **how: Any) -> "Dataset | IterableDataset":
    from datasets import load_dataset

    return load_dataset(path, split=split, **how)


def _first(stream: "IterableDataset", rows: int, key: list[Any]) -> "Dataset":
    """Fetch the first rows of a stream, and keep them in the cache of `datasets`.

    Args:
        stream: Its pictures are not decoded.
        rows: How many.
        key: What the rows are known by; equal keys give what was kept.
    """
    from datasets import Dataset

    taken = stream.decode(False).take(rows) if stream.features else stream.take(rows)
    return Dataset.from_generator(
        taken.__iter__, features=stream.features, fingerprint=hash_of([*key, rows])[:32]
    )


def _length(file: Path) -> int:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_metadata(file).num_rows
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        fix = "write or fetch it again"
        raise VictorError(f"{file}: not a parquet file: {reason}", fix=fix) from error


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Let what `datasets` cannot read be errors that say what to do; bars need a terminal."""
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    shown = not datasets.are_progress_bars_disabled()
    if shown and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    except (DatasetsError, DatasetGenerationError, FileNotFoundError) as error:
        fix = "check the name, or: hf auth login" if "/" in name else "write it again"
        raise VictorError(f"{name}: {_in_short(error)}", fix=fix) from error
    except ValueError as error:  # no such configuration, or one must be named
        fix = f"name a configuration: {'/'.join(name.split('/')[:2])}/CONFIGURATION"
        raise VictorError(f"{name}: {_in_short(error)}", fix=fix) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _in_short(error: Exception) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:300]


def _is_stored(kind: "pyarrow.DataType") -> bool:
    """Tell whether a column holds pictures: bytes, or a struct or list of them."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_stored(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _entries(column: "pyarrow.ChunkedArray") -> list[list[tuple[int, str | None]]]:
    """List each row's pictures by number: None where its bytes are stored, else a file's name.

    No bytes are read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return [[(0, path)] if there else [] for there, path in _cells(column)]
    counts = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    cells = iter(_cells(pc.list_flatten(column)))
    rows = [list(itertools.islice(cells, count)) for count in counts]
    return [[(n, path) for n, (there, path) in enumerate(row) if there] for row in rows]


def _cells(column: "pyarrow.ChunkedArray") -> Iterator[tuple[bool, str | None]]:
    """Say of each picture whether there is one, and its file where that is all there is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type):
        yield from ((there, None) for there in column.is_valid().to_pylist())
        return
    stored = pc.struct_field(column, "bytes").is_valid().to_pylist()
    names = [column.type.field(n).name for n in range(column.type.num_fields)]
    paths = pc.struct_field(column, "path").to_pylist() if "path" in names else [None] * len(stored)
    for here, path in zip(stored, paths, strict=True):
        yield here or path is not None, None if here else path
