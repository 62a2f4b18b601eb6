"""Where a benchmark's data are: on the Hub, or in a copy on disk, whatever its form."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from victorctl.benchmarks.base import Benchmark, Hub
from victorctl.data import records
from victorctl.data.formats import BadRow
from victorctl.data.records import Opened, Spec
from victorctl.errors import VictorError


@dataclass(frozen=True)
class Source:
    """Where the data of a benchmark are looked for.

    Args:
        name: Of the benchmark.
        benchmark: Itself.
        data_dir: Holds a copy, in a folder or file of that name; None: they are fetched.
    """

    name: str
    benchmark: Benchmark
    data_dir: Path | None

    @property
    def place(self) -> str:
        """Name it for messages."""
        return self.benchmark.data.repo if self.data_dir is None else str(self.data_dir / self.name)

    @property
    def fix(self) -> str:
        """Say how to get the data."""
        data, beside = self.benchmark.data, self.benchmark.beside
        needed = (data, beside.data) if beside else (data,)
        parts = " ".join(f"--include '{_files(one)}'" for one in needed)
        home = Path(self.data_dir or "DIR") / self.name
        fetch = f"hf download {data.repo} --repo-type dataset {parts} --local-dir {home}"
        return fetch if self.data_dir else f"{fetch}, and add --data-dir DIR"

    @property
    def is_missing(self) -> bool:
        """Tell whether a copy is neither where its questions belong nor in a file beside."""
        return self.data_dir is not None and not any(map(_there, self._places))

    @property
    def _places(self) -> list[Path]:
        home, config = Path(self.place), self.benchmark.data.config
        return [home / config, home] if config else [home]

    def open(self, rows: int | None) -> Opened:
        """Open the rows of the questions.

        Args:
            rows: Read only so many, from the start; None for all.

        Raises:
            VictorError: If they are not there, or cannot be read.
        """
        return self._open(self.benchmark.data, self._places, rows)

    def open_beside(self) -> Opened:
        """Open the rows of pictures that are stored apart.

        Raises:
            VictorError: If they are not there, or cannot be read.
        """
        data = self.benchmark.beside.data
        return self._open(data, [Path(self.place) / data.config], None)

    def _open(self, data: Hub, places: Sequence[Path], rows: int | None) -> Opened:
        try:
            opened = self._find(data, places, rows) if self.data_dir else _fetch(data, rows)
        except BadRow:
            raise
        except VictorError as error:
            raise VictorError(error.problem, fix=f"{error.fix}; or: {self.fix}") from error
        if not opened.records:
            raise VictorError(f"{self.place}: holds no rows", fix=self.fix)
        return opened

    def _find(self, data: Hub, places: Sequence[Path], rows: int | None) -> Opened:
        there = next(filter(None, map(_there, places)), None)
        if there is None:
            fix = f"put data with the columns {', '.join(self.benchmark.columns)} there"
            raise VictorError(f"{places[0]}: no such folder, and no file of that name", fix=fix)
        return records.open_path(there, Spec(str(there), data.split, None, loose=True), rows)


def _files(data: Hub) -> str:
    """Match the files of a configuration and split as `datasets` names them."""
    return f"{data.config}/*{data.split}*" if data.config else f"*{data.split}*"


def _there(place: Path) -> Path | None:
    """Find a folder, or a file of that name with a suffix of data."""
    files = (place.with_name(f"{place.name}{suffix}") for suffix in records.KNOWN)
    return next((path for path in (place, *files) if path.exists()), None)


def _fetch(data: Hub, rows: int | None) -> Opened:
    from victorctl.data.tables import open_hub

    name = data.repo if data.config is None else f"{data.repo}/{data.config}"
    return open_hub(Spec(name, data.split, None), rows)
