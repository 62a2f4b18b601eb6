"""Tiny benchmarks in every form of storage: rows/NAME.jsonl has some in the columns of the Hub.

Pictures are there as "0.png", which stands for `tiny_picture(0)`. A second file, NAME.beside.jsonl,
has pictures that are stored apart.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image

from tests.data.forms import png
from victorctl.benchmarks import BENCHMARKS, benchmark
from victorctl.data.rows import Picture

ROWS = Path(__file__).parent / "rows"
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    """Read a benchmark's example rows; "gqa.beside" is the pictures of GQA."""
    lines = (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def asked(name: str) -> Iterator[tuple[Row, Any]]:
    """Pair each example row with its question; a picture is the path of no file."""
    found = benchmark(name)
    for row in rows(name):
        shown = {column: closed(row.get(column)) for column in found.shown}
        if found.beside:
            shown[found.beside.image] = (Path("0.png"),)
        yield row, found.ask(dict.fromkeys(found.columns) | row | shown)


def closed(cell: Any) -> tuple[Picture, ...]:
    return tuple(Path(name) for name in (cell if isinstance(cell, list) else [cell]) if name)


def store(
    name: str,
    data_dir: Path,
    form: str = "jsonl",
    *,
    own: list[Row] | None = None,
    beside: list[Row] | None = None,
) -> Path:
    """Write a benchmark to a folder as one would fetch or make it.

    Args:
        name: Of the benchmark.
        data_dir: Gets a folder of that name.
        form: One of FORMS.
        own: Rows instead of the examples.
        beside: Pictures instead of those of the examples.

    Returns:
        `data_dir`.
    """
    found = benchmark(name)
    _write(form, data_dir / name, found.data, rows(name) if own is None else own)
    if found.beside:
        apart = rows(f"{name}.beside") if beside is None else beside
        _write(form, data_dir / name, found.beside.data, apart)
    return data_dir


def store_all(data_dir: Path, form: str = "jsonl") -> Path:
    for name in BENCHMARKS:
        store(name, data_dir, form)
    return data_dir


def _write(form: str, home: Path, data: Any, table: list[Row]) -> None:
    place = home / data.config if data.config else home
    place.mkdir(parents=True, exist_ok=True)
    FORMS[form](place, data.split, table)


def is_picture(cell: Any) -> bool:
    cells = cell if isinstance(cell, list) else [cell]
    return bool(cells) and all(isinstance(one, str) and one.endswith(".png") for one in cells)


def parquet(place: Path, split: str, table: list[Row]) -> None:
    """As the Hub has them, and `hf download` leaves them."""
    (place / "data").mkdir(exist_ok=True)
    dataset(table).to_parquet(place / "data" / f"{split}-00000-of-00001.parquet")


def saved(place: Path, split: str, table: list[Row]) -> None:
    DatasetDict({split: dataset(table)}).save_to_disk(place)


def dataset(table: list[Row]) -> Dataset:
    """Put the pictures themselves into the rows."""
    shown = {
        key: isinstance(cell, list)
        for row in table
        for key, cell in row.items()
        if is_picture(cell)
    }
    stored = [{**row, **{key: _stored(row.get(key)) for key in shown}} for row in table]
    made = Dataset.from_list(stored)
    for key, several in shown.items():
        made = made.cast_column(key, [Image()] if several else Image())
    return made


def _stored(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_stored(one) for one in cell]
    return cell and {"bytes": png(int(Path(cell).stem)), "path": cell}


def jsonl(place: Path, split: str, table: list[Row]) -> None:
    _pictures(place, table)
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, table)), encoding="utf-8")


def json_list(place: Path, split: str, table: list[Row]) -> None:
    _pictures(place, table)
    (place / f"{split}.json").write_text(json.dumps(table), encoding="utf-8")


def comma_separated(place: Path, split: str, table: list[Row]) -> None:
    """Lists and structs as JSON."""
    _pictures(place, table)
    names = list(dict.fromkeys(key for row in table for key in row))
    with (place / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, names)
        lines.writeheader()
        for row in table:
            lines.writerow(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            )


def tar(place: Path, split: str, table: list[Row]) -> None:
    with tarfile.open(place / f"{split}.tar", "w") as archive:
        for number, row in enumerate(table):
            shown = {key: cell for key, cell in row.items() if is_picture(cell)}
            rest = {k: cell for k, cell in row.items() if k not in shown and cell is not None}
            _add(archive, f"{number:04}.json", json.dumps(rest).encode())
            for key, cell in shown.items():
                for place, one in enumerate(cell if isinstance(cell, list) else [cell]):
                    _add(archive, f"{number:04}.{key}{place or ''}.png", png(int(Path(one).stem)))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def _pictures(place: Path, table: list[Row]) -> None:
    for row in table:
        for cell in row.values():
            for name in (cell if isinstance(cell, list) else [cell]) if is_picture(cell) else ():
                (place / name).write_bytes(png(int(Path(name).stem)))


FORMS: dict[str, Callable[[Path, str, list[Row]], None]] = {
    "parquet": parquet, "saved": saved, "jsonl": jsonl, "json": json_list,
    "csv": comma_separated, "tar": tar,
}  # fmt: skip
