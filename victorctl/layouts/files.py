"""The weight files of an original layout, safetensors or pickles, read tensor by tensor.

A pickle is read with torch's weights-only unpickler, which runs no code, one whole file at a time.
"""

import pickle
import warnings
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from victorctl import weights
from victorctl.checkpoint import weight_map
from victorctl.errors import VictorError
from victorctl.sources import BASE_INDEX, BASE_WEIGHTS, BIN_INDEX
from victorctl.weights import AGAIN, CHUNK, Entry

BIN_WEIGHTS = "pytorch_model.bin"
PROJECTOR = "mm_projector.bin"
TRAINABLES = "non_lora_trainables.bin"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
CODES = {getattr(torch, name): code for code, name in weights.NAMES.items()}


def wanted(folder: Path) -> list[str] | None:
    """Name the files of weights that an index in a folder promises; None where there is none."""
    for index, suffix in ((BASE_INDEX, ".safetensors"), (BIN_INDEX, ".bin")):
        if names := sorted(set(weight_map(folder / index, suffix).values())):
            return names
    return None


def find(folder: Path) -> list[Path]:
    """List the weight files of a folder, safetensors before pickles; none where there are none.

    Raises:
        VictorError: If an index is damaged, leads out of the folder, or names a file that is not
            there.
    """
    if (folder / BASE_WEIGHTS).is_file():
        return [folder / BASE_WEIGHTS]
    names = wanted(folder)
    if names is None:
        return [path for path in [folder / BIN_WEIGHTS] if path.is_file()]
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise VictorError(
                f"{folder}: shard {path.name} is missing, and the index names it",
                fix="download the missing shard into the folder",
            )
    shards = {path.name: entries(path) for path in paths}
    index = BIN_INDEX if names[0].endswith(".bin") else BASE_INDEX
    weights.check_index(folder, weight_map(folder / index, Path(names[0]).suffix), shards)
    return paths


def entries(file: Path) -> list[Entry]:
    """List the tensors of a file, from its header or its pickle alone.

    Raises:
        VictorError: If the file is not whole, its header lies, or its pickle holds code.
    """
    if file.suffix != ".bin":
        return weights.read_entries(file)
    with warnings.catch_warnings(), FakeTensorMode():  # shapes without numbers
        warnings.simplefilter("ignore")
        return [_entry(name, tensor) for name, tensor in _unpickled(file).items()]


def _entry(name: str, tensor: Tensor) -> Entry:
    code = CODES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return Entry(name, code, tuple(tensor.shape), 0, tensor.nbytes)


def _unpickled(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise VictorError(f"{file}: no such file", fix=AGAIN)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        problem = f"{file}: a pickle that holds more than tensors, or none at all: it is not opened"
        raise VictorError(problem, fix="use a copy of the model from its author") from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise VictorError(f"{file}: truncated, or no file of torch", fix=AGAIN) from error
    if not _is_state(content):
        raise VictorError(f"{file}: not a table of tensors by name", fix=AGAIN)
    for name, tensor in content.items():
        if not _is_plain(tensor, file.stat().st_size):
            problem = f"{file}: tensor {name} is not simply numbers that stand in the file"
            raise VictorError(problem, fix=AGAIN)
    return content


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )


def _is_plain(tensor: Tensor, size: int) -> bool:
    """Say whether a tensor is dense and no larger than its file, whatever its strides say."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and max(tensor.nbytes, tensor.untyped_storage().nbytes()) <= size


def pieces(
    file: Path, names: Collection[str], rowwise: Collection[str]
) -> Iterator[tuple[Entry | None, bytes]]:
    """Read a file from front to end: None with what is no tensor, then tensors in pieces.

    Args:
        file: Safetensors, or a pickle, of which only the tensors that are named are given.
        names: Of tensors.
        rowwise: Names of matrices that are cut between rows.
    """
    if file.suffix == ".bin":
        yield from _pieces_of_pickle(file, names, rowwise)
        return
    yield from weights.chunks(file, lambda entry: _step(entry, entry.name in rowwise))


def _pieces_of_pickle(
    file: Path, names: Collection[str], rowwise: Collection[str]
) -> Iterator[tuple[Entry, bytes]]:
    _check_sums(file)
    for name, tensor in _unpickled(file).items():
        if name not in names:
            continue
        entry = _entry(name, tensor)
        flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
        step = _step(entry, name in rowwise)
        for start in range(0, entry.stop, step):
            yield entry, flat[start : start + step].tobytes()


def _check_sums(file: Path) -> None:
    """Refuse a pickle whose numbers were damaged: torch reads them all the same."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            damaged = parts.testzip()
        if damaged:
            raise VictorError(f"{file}: damaged in {damaged}", fix=AGAIN)


def _step(entry: Entry, rowwise: bool) -> int:
    if not rowwise:
        return CHUNK
    row = (entry.stop - entry.start) // entry.shape[0]
    return max(1, CHUNK // row) * row


class Store:
    """Reads tensors of one file by name, in any order; a pickle stays in memory meanwhile."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.entries = {entry.name: entry for entry in entries(file)}
        self._loaded: dict[str, Tensor] | None = None

    def load(self, name: str) -> Tensor:
        """Read one tensor in single precision."""
        entry = self.entries[name]
        if self.file.suffix == ".bin":
            if self._loaded is None:
                self._loaded = _unpickled(self.file)
            return self._loaded[name].float()
        with self.file.open("rb") as stream:
            stream.seek(entry.start)
            data = stream.read(entry.stop - entry.start)
        weights.check_finite(data, entry, self.file)
        return weights.to_tensor(data, entry.dtype).view(entry.shape).float()
