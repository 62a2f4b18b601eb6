"""Translated weights: planned from headers, and written in one pass over the original's files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from victorctl import weights
from victorctl.errors import CheckFailed, VictorError
from victorctl.layouts import files
from victorctl.layouts.lora import Adapter
from victorctl.layouts.names import EMBEDDINGS, HEAD, TOWER, Rename, check_complete
from victorctl.modeling_victor import write_index
from victorctl.sources import BASE_INDEX, BASE_WEIGHTS
from victorctl.weights import Advance, Entry


@dataclass(frozen=True)
class Part:
    """A file of weights, and what its tensors are called in transformers."""

    path: Path
    label: str
    """What it is called in `victor.json`."""
    rename: Rename
    first: bool = False
    """Its tensors take the place of those of other parts."""


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    old: Entry
    rows: int
    """That are added at its end, each the mean of the others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """After rows were added."""
        return (self.old.shape[0] + self.rows, *self.old.shape[1:]) if self.rows else self.old.shape


@dataclass(frozen=True)
class Weights:
    """Every tensor that will be written, by the file that it comes from."""

    parts: Mapping[Path, Mapping[str, Planned]]
    """New tensors by their original names."""
    labels: Mapping[Path, str]
    adapter: Adapter | None

    @cached_property
    def names(self) -> dict[Path, str]:
        """Map each original file that gives anything to the file that is written."""
        used = [path for path, planned in self.parts.items() if planned]
        if len(used) == 1:
            return {used[0]: BASE_WEIGHTS}
        total = f"{len(used):05d}"
        return {
            path: f"model-{place:05d}-of-{total}.safetensors" for place, path in enumerate(used, 1)
        }

    @property
    def tensors(self) -> Iterator[Planned]:
        """All of them."""
        for planned in self.parts.values():
            yield from planned.values()

    def size(self) -> int:
        """Bytes of what is written, in the original's number format."""
        return sum(_length(tensor, tensor.old.dtype) for tensor in self.tensors)


@dataclass(frozen=True)
class Written:
    """What came of writing."""

    originals: dict[str, str]
    """SHA-256 of the original's files, by name."""
    files: dict[str, str]
    """SHA-256 of the new files, by name."""
    tensors: dict[str, tuple[str, str, int]]
    """New name: original name, SHA-256 and length of its bytes, where these were kept."""


def plan(parts: Sequence[Part], adapter: Adapter | None, config: Mapping[str, Any], vocab: int) -> (
    Weights
):  # fmt: skip
    """Find a place for every tensor of the parts.

    Args:
        parts: Of all files.
        adapter: That is merged into their weights.
        config: `config.json` in transformers' layout.
        vocab: Rows of the original's vocabulary.

    Raises:
        VictorError: If one has no place, is there twice, or is not of a number format that is kept.
    """
    planned: dict[Path, dict[str, Planned]] = {part.path: {} for part in parts}
    owner: dict[str, Part] = {}
    more = config["text_config"]["vocab_size"] - vocab
    for part in sorted(parts, key=lambda part: not part.first):
        for entry in files.entries(part.path):
            name = part.rename(entry.name)
            if name is None or owner.get(name, part).first is not part.first:
                continue
            if name in owner:
                problem = f"{part.path}: tensor {name} is there twice"
                raise VictorError(problem, fix="use another copy of the model")
            _check_format(entry, part.path)
            owner[name] = part
            rows = more if name in (EMBEDDINGS, HEAD) else 0
            planned[part.path][entry.name] = Planned(name, entry, rows)
    _check_updates(planned, adapter)
    return Weights(planned, {part.path: part.label for part in parts}, adapter)


def check_whole(found: Weights, config: Mapping[str, Any], vocab: int) -> None:
    """Refuse weights that are not those of the configuration; see `check_complete`."""
    shapes = {tensor.name: tensor.old.shape for tensor in found.tensors}
    text = {**config["text_config"], "vocab_size": vocab}
    check_complete(shapes, {**config, "text_config": text})


def has_tower(parts: Sequence[Part]) -> bool:
    """Say whether the files hold a vision tower."""
    names = (part.rename(entry.name) for part in parts for entry in files.entries(part.path))
    return any(name is not None and name.startswith(TOWER) for name in names)


def _check_format(entry: Entry, file: Path) -> None:
    if entry.dtype not in weights.NAMES:
        raise VictorError(
            f"{file}: tensor {entry.name} holds {entry.dtype}, no number format that is kept",
            fix="convert the model that it was quantised from",
        )


def _check_updates(planned: Mapping[Path, Mapping[str, Planned]], adapter: Adapter | None) -> None:
    """Refuse an update that no weight is there for."""
    known = {name: tensor.old for one in planned.values() for name, tensor in one.items()}
    for name in adapter.scales if adapter else ():
        if name not in known:
            raise VictorError(
                f"{adapter.store.file}: it updates {name}, which the base model does not have",
                fix="add --base SOURCE with the language model that it was trained on",
            )
        adapter.check(known[name])


def write(found: Weights, folder: Path, cast: str | None, advance: Advance) -> Written:
    """Write all weights in one pass, and their index.

    Args:
        found: What to write.
        folder: Where.
        cast: Number format that they become; None: they keep theirs.
        advance: Is told of the bytes that were read.

    Raises:
        VictorError: If a file is not whole, or holds NaN or infinity.
    """
    written = Written({}, {}, {})
    for path, name in found.names.items():
        writer = _Writer(found, path, cast, advance)
        written.files[name] = writer.write(folder / name)
        written.originals[found.labels[path]] = writer.original
        written.tensors.update(writer.tensors)
    if found.adapter is not None:
        file = found.adapter.store.file
        written.originals[file.name] = weights.sha256(file)
    write_index(folder / BASE_INDEX, written.files)  # without it transformers finds no shard
    return written


class _Writer:
    """Turns one original file into a new one."""

    def __init__(self, found: Weights, path: Path, cast: str | None, advance: Advance) -> None:
        self.planned, self.adapter = found.parts[path], found.adapter
        self.path, self.cast, self.advance = path, cast, advance
        self.tensors: dict[str, tuple[str, str, int]] = {}
        self.original = ""

    def write(self, target: Path) -> str:
        """Write the file, and return its SHA-256; that of the original is in `original`."""
        new, old = sha256(), sha256()
        with target.open("wb") as out:
            for data in self._contents(old):
                new.update(data)
                out.write(data)
        pickled = self.path.suffix == ".bin"
        self.original = weights.sha256(self.path) if pickled else old.hexdigest()
        return new.hexdigest()

    def _contents(self, old: "sha256") -> Iterator[bytes]:
        yield weights.encoded_header(self._header())
        updated = self.adapter.scales if self.adapter else {}
        rowwise = {name for name, one in self.planned.items() if one.rows or name in updated}
        for entry, pieces in groupby(files.pieces(self.path, self.planned, rowwise), itemgetter(0)):
            parts = self._counted((data for _, data in pieces), old)
            if entry is not None and entry.name in self.planned:
                yield from self._tensor(entry, parts)
            else:
                for _ in parts:  # is hashed, and left out
                    pass

    def _counted(self, parts: Iterator[bytes], old: "sha256") -> Iterator[bytes]:
        for data in parts:
            old.update(data)
            self.advance(len(data))
            yield data

    def _header(self) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
        for tensor in self.planned.values():  # in the order of the original's bytes
            dtype = self.cast or tensor.old.dtype
            yield tensor.name, dtype, tensor.shape, _length(tensor, dtype)

    def _tensor(self, entry: Entry, parts: Iterator[bytes]) -> Iterator[bytes]:
        tensor, digest, mean, first = self.planned[entry.name], sha256(), _Mean(entry), 0
        updated = self.adapter is not None and entry.name in self.adapter.scales
        update = self.adapter.update(entry.name, entry.dtype) if updated else None
        for data in parts:
            digest.update(data)
            weights.check_finite(data, entry, self.path)
            if update is not None:
                data, first = update(data, first), first + mean.rows_in(data)
                weights.check_finite(data, entry, self.path)
            if tensor.rows:
                mean.add(data)
            yield self._cast(data, entry)
        if tensor.rows:
            yield self._cast(mean.row() * tensor.rows, entry)
        if not updated and self.cast in (None, entry.dtype):
            kept = (entry.name, digest.hexdigest(), entry.stop - entry.start)
            self.tensors[tensor.name] = kept

    def _cast(self, data: bytes, entry: Entry) -> bytes:
        if self.cast is None:
            return data
        other = weights.cast(data, entry.dtype, self.cast)
        weights.check_finite(other, entry._replace(dtype=self.cast), self.path, "once it is")
        return other


class _Mean:
    """The mean of a matrix's rows, which are seen block by block."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.count = entry, 0
        self.total = 0.0

    def rows_in(self, data: bytes) -> int:
        """Count the rows of a block."""
        return len(data) * self.entry.shape[0] // (self.entry.stop - self.entry.start)

    def add(self, data: bytes) -> None:
        """See a block of whole rows."""
        rows = weights.to_tensor(data, self.entry.dtype).view(-1, self.entry.shape[1])
        self.total = self.total + rows.sum(dim=0, dtype=torch.float64)
        self.count += len(rows)

    def row(self) -> bytes:
        """Spell the mean in the matrix's number format."""
        return weights.to_bytes(self.total / self.count, self.entry.dtype)


def _length(tensor: Planned, dtype: str) -> int:
    return math.prod(tensor.shape) * weights.INFINITY[dtype][0]().itemsize


def check_kept(written: Written, folder: Path) -> bool:
    """Read all that was written again, and hold every tensor to the bytes that it had.

    Returns:
        Whether this could be said of every tensor: none was cast or merged.

    Raises:
        CheckFailed: If one differs.
    """
    for name in written.files:
        for entry in weights.read_entries(folder / name):
            if entry.name not in written.tensors:
                continue
            old, expected, length = written.tensors[entry.name]
            if _hash(folder / name, entry, length) != expected:
                raise CheckFailed(
                    f"{name}: tensor {entry.name} is not what was read as {old}",
                    fix="check the disk, and convert again",
                )
    return _count(written, folder) == len(written.tensors)


def _count(written: Written, folder: Path) -> int:
    return sum(len(weights.read_entries(folder / name)) for name in written.files)


def _hash(file: Path, entry: Entry, length: int) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        stream.seek(entry.start)
        for start in range(0, length, weights.CHUNK):
            digest.update(stream.read(min(weights.CHUNK, length - start)))
    return digest.hexdigest()
