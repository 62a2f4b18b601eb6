"""Safetensors files, checked, hashed, copied and cast in a stream: never mapped, never unpickled.

A mapped file counts as the process's memory; a stream needs a megabyte, whatever the file's size.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from victorctl.errors import VictorError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_HEADER = 100_000_000  # bytes, by the format's definition
CHUNK = 1 << 20  # bytes; a multiple of every number's size
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTEGERS = {"I64": "int64", "I32": "int32", "U8": "uint8"}  # that this package writes itself
BITS = {  # of one number of every format that safetensors has
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
INFINITY = {  # unsigned type of the same size, and the bits of infinity; NaN's are higher
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
TEXT_LAYER = re.compile(r"(?:language_model|text_model)\.(?:model\.)?(layers\.(\d+)\..*)")
"""Names of tensors in the layers of a text model: their name within it, and the layer's number."""
AGAIN = "download this file again, or use another copy of the model"

Advance = Callable[[int], None]
"""Is told of every so many bytes that were read."""


class Entry(NamedTuple):
    """One tensor of a file; `start` and `stop` count bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


def read_entries(file: Path) -> list[Entry]:
    """List the tensors of a file in the order of their bytes, and check that the file is whole.

    Raises:
        VictorError: If the file is missing, not in this format, or shorter or longer than its
            header says.
    """
    header, first = _read_header(file)
    try:
        entries = [_entry(name, of, first) for name, of in json.loads(header).items()]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise VictorError(f"{file}: not a safetensors file ({error})", fix=AGAIN) from error
    entries = [entry for entry in entries if entry is not None]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    starts = [first, *(entry.stop for entry in entries)]
    if any(entry.start != start for entry, start in zip(entries, starts, strict=False)):
        raise VictorError(f"{file}: its header leaves gaps between tensors", fix=AGAIN)
    size = file.stat().st_size
    if size != starts[-1]:
        word = "truncated" if size < starts[-1] else "too long"
        problem = f"{file}: {word}: {size:,} bytes, and its header promises {starts[-1]:,}"
        raise VictorError(problem, fix=AGAIN)
    return entries


def _entry(name: str, value: dict[str, Any], first: int) -> Entry | None:
    """Read what a header says of a tensor.

    Raises:
        ValueError: If it cannot be, such as bytes that are more or fewer than its numbers need.
    """
    if name == "__metadata__":
        return None
    (start, stop), shape = value["data_offsets"], tuple(value["shape"])
    if {type(number) for number in (start, stop, *shape)} != {int}:
        raise ValueError(f"{name}: sizes that are no whole numbers")
    bits = math.prod(shape) * BITS[value["dtype"]]
    if min(start, *shape, 0) < 0 or bits != 8 * (stop - start):
        raise ValueError(f"{name}: {shape} of {value['dtype']} in {stop - start} bytes")
    return Entry(name, value["dtype"], shape, first + start, first + stop)


def _read_header(file: Path) -> tuple[bytes, int]:
    """Read the header and where the numbers start."""
    if not file.is_file():
        raise VictorError(f"{file}: no such file", fix=AGAIN)
    with file.open("rb") as stream:
        length = stream.read(8)
        first = 8 + int.from_bytes(length, "little")
        if length == b"version ":
            raise VictorError(f"{file}: a Git LFS pointer, not the weights", fix="git lfs pull")
        if len(length) < 8 or file.stat().st_size < first < LONGEST_HEADER:
            raise VictorError(f"{file}: truncated within its header", fix=AGAIN)
        return stream.read(first - 8) if first < LONGEST_HEADER else b"", first


def sha256(file: Path) -> str:
    """Hash a file of any kind."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checked_sha256(file: Path, advance: Advance) -> str:
    """Hash a safetensors file, and check every number on the way.

    Args:
        file: A safetensors file.
        advance: Is told of what was read.

    Raises:
        VictorError: If the file is not whole, or holds NaN or infinity.
    """
    digest = hashlib.sha256()
    for entry, data in chunks(file):
        if entry is not None:
            check_finite(data, entry, file)
        digest.update(data)
        advance(len(data))
    return digest.hexdigest()


def copy_file(source: Path, target: Path, *, link: bool, advance: Advance) -> str:
    """Copy a file byte for byte, check every number on the way, and return its SHA-256.

    Args:
        source: A safetensors file.
        target: Must not exist.
        link: Make a hard link where the file system can; the file is read and checked all the same.
        advance: Is told of what was read.

    Raises:
        VictorError: If the file is not whole, or holds NaN or infinity.
    """
    digest = hashlib.sha256()
    linked = link and _hard_link(source, target)
    with nullcontext() if linked else target.open("wb") as out:
        for entry, data in chunks(source):
            if entry is not None:
                check_finite(data, entry, source)
            digest.update(data)
            if out is not None:
                out.write(data)
            advance(len(data))
    return digest.hexdigest()


def cast_file(source: Path, target: Path, *, dtype: str, advance: Advance) -> str:
    """Copy a file with its floating-point tensors cast, and return the SHA-256 of the source.

    Args:
        source: A safetensors file.
        target: Must not exist.
        dtype: F64, F32, F16 or BF16.
        advance: Is told of what was read.

    Raises:
        VictorError: If the file is not whole, holds NaN or infinity, or a number is too large.
    """
    digest = hashlib.sha256()
    size = INFINITY[dtype][0]().itemsize
    tensors = []
    for entry in read_entries(source):
        length, known = entry.stop - entry.start, entry.dtype in INFINITY
        if known:
            length = length // INFINITY[entry.dtype][0]().itemsize * size
        tensors.append((entry.name, dtype if known else entry.dtype, entry.shape, length))
    with target.open("wb") as out:
        out.write(encoded_header(tensors))
        for entry, data in chunks(source):
            digest.update(data)
            if entry is not None:
                check_finite(data, entry, source)
                other = cast(data, entry.dtype, dtype)
                check_finite(other, entry._replace(dtype=dtype), source, "once it is")
                out.write(other)
            advance(len(data))
    return digest.hexdigest()


def cast(data: bytes, old: str, new: str) -> bytes:
    """Turn numbers of one format into another; what is no floating-point number stays."""
    if old not in NAMES or old == new:
        return data
    return to_bytes(to_tensor(data, old), new)


def rewrite_file(
    source: Path, target: Path, change: Mapping[str, Callable[["Tensor"], "Tensor"]]
) -> str:
    """Copy a file with some tensors changed, all else byte for byte; return the copy's SHA-256.

    Args:
        source: A safetensors file.
        target: Must not exist.
        change: What becomes of floating-point tensors, by name; shape and number format stay. Only
            one such tensor is in memory at a time.
    """
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for entry, pieces in groupby(chunks(source), itemgetter(0)):
            parts = (data for _, data in pieces)
            if entry is not None and entry.name in change:
                old = to_tensor(b"".join(parts), entry.dtype).view(entry.shape)
                parts = [to_bytes(change[entry.name](old), entry.dtype)]
            for data in parts:
                digest.update(data)
                out.write(data)
    return digest.hexdigest()


def write_file(file: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Write tensors one by one: from another device, only one at a time is brought over.

    Unlike safetensors' own writer, it raises an `OSError` when the disk is full, and gives the file
    the permissions that the user's other files have.

    Args:
        file: Where to write.
        tensors: By name; floating-point numbers, or INTEGERS.
        metadata: Texts that go into the header.
    """
    import torch

    codes = {getattr(torch, name): code for code, name in (NAMES | INTEGERS).items()}
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # keeps them aligned
    header = [
        (name, codes[tensors[name].dtype], tuple(tensors[name].shape), tensors[name].nbytes)
        for name in names
    ]
    with file.open("wb") as out:
        out.write(encoded_header(header, metadata))
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().flatten()
            out.write(flat.view(torch.uint8).numpy())


def encoded_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]],
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
) -> bytes:
    """Spell a header with its length in front, as a file begins.

    Args:
        tensors: Name, number format, shape and length in bytes, in the order of their numbers.
        metadata: Texts.
    """
    header, offset = {"__metadata__": dict(metadata)}, 0
    for name, dtype, shape, length in tensors:
        offsets = [offset, offset := offset + length]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def to_tensor(data: bytes, dtype: str) -> "Tensor":
    """Read floating-point numbers, without their shape."""
    import torch

    return torch.frombuffer(bytearray(data), dtype=getattr(torch, NAMES[dtype]))


def to_bytes(tensor: "Tensor", dtype: str) -> bytes:
    """Spell a tensor's numbers in a floating-point format."""
    import torch

    cast = tensor.to(getattr(torch, NAMES[dtype])).contiguous().flatten()
    return cast.view(torch.uint8).numpy().tobytes()


def read_rows(file: Path, entry: Entry) -> Iterator[np.ndarray]:
    """Read a floating-point matrix a few rows at a time, each as float32 [rows, columns]."""
    columns = entry.shape[1]
    row = (entry.stop - entry.start) // entry.shape[0]
    with file.open("rb") as stream:
        stream.seek(entry.start)
        rest = entry.stop - entry.start
        while rest:
            data = stream.read(min(rest, max(1, CHUNK // row) * row))
            rest -= len(data)
            yield _numbers(data, entry.dtype).reshape(-1, columns)


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(NAMES[dtype])).astype(np.float32)


def chunks(
    file: Path, step: Callable[[Entry], int] = lambda _: CHUNK
) -> Iterator[tuple[Entry | None, bytes]]:
    """Read a whole file: its header as one piece, with None, then every tensor in pieces.

    Args:
        file: A safetensors file.
        step: Bytes of a piece of a tensor; whole numbers.
    """
    entries = read_entries(file)
    with file.open("rb") as stream:
        yield None, stream.read(entries[0].start if entries else file.stat().st_size)
        for entry in entries:
            length = step(entry)
            for start in range(entry.start, entry.stop, length):
                yield entry, stream.read(min(length, entry.stop - start))


def check_index(
    place: object, promised: Mapping[str, str], shards: Mapping[str, Iterable[Entry]]
) -> None:
    """Refuse an index that says something else than its shards.

    Args:
        place: The model, for the error.
        promised: What `checkpoint.weight_map` gives.
        shards: By file name, the tensors that are in it.

    Raises:
        VictorError: If a tensor is in no shard, in another, or in one and not in the index.
    """
    found = [(entry.name, shard) for shard, entries in shards.items() for entry in entries]
    if lost := promised.keys() - dict(found).keys():
        problem = f"{len(lost)} tensors are in no shard, such as {min(lost)}"
        raise VictorError(f"{place}: {problem}", fix=AGAIN)
    for name, shard in found:
        if promised.get(name) != shard:
            problem = f"tensor {name} is in {shard}, and the index says {promised.get(name)}"
            raise VictorError(f"{place}: {problem}", fix=AGAIN)


def check_finite(data: bytes, entry: Entry, file: Path, when: str = "") -> None:
    """Refuse NaN and infinity among the numbers of a tensor.

    Args:
        data: A piece of the tensor.
        entry: The tensor; integers and 8-bit floats pass.
        file: Where it stands, for the error.
        when: Says that the numbers were cast, for the error.
    """
    if entry.dtype not in INFINITY or not data:
        return
    unsigned, infinity = INFINITY[entry.dtype]
    magnitude = np.frombuffer(data, unsigned) & unsigned(np.iinfo(unsigned).max >> 1)
    if magnitude.max() < infinity:
        return
    if when:
        problem = f"{file}: tensor {entry.name} does not fit into {NAMES[entry.dtype]}"
        raise VictorError(problem, fix="use --dtype bf16, or --dtype auto for the source's own")
    raise VictorError(f"{file}: tensor {entry.name} holds NaN or infinity", fix=AGAIN)


def _hard_link(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another device, or a file system without hard links
        return False
    return True
