import hashlib
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from victorctl import weights
from victorctl.errors import VictorError

# NaN and infinity in each format, and the largest finite number, as the bits of safetensors' names
BITS = {
    torch.float64: (torch.int64, 0x7FF8000000000000, 0x7FF0000000000000, 0x7FEFFFFFFFFFFFFF),
    torch.float32: (torch.int32, 0x7FC00000, 0x7F800000, 0x7F7FFFFF),
    torch.float16: (torch.int16, 0x7E00, 0x7C00, 0x7BFF),
    torch.bfloat16: (torch.int16, 0x7FC0, 0x7F80, 0x7F7F),
}


def nothing(_count):
    """Ignore progress."""


def copy(source, *, link=False, advance=nothing):
    target = source.with_name("copy.safetensors")
    return target, weights.copy_file(source, target, link=link, advance=advance)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([7, -1], dtype=torch.int16)}
    save_file(tensors, path, {"format": "pt"})
    return path


def test_lists_tensors_in_the_order_of_their_bytes_counted_from_the_start_of_the_file(file):
    data = file.read_bytes()
    first = 8 + struct.unpack("<Q", data[:8])[0]

    entries = weights.read_entries(file)

    assert [(entry.name, entry.dtype, entry.shape, entry.count) for entry in entries] == [
        ("b", "F32", (2, 3), 6),  # safetensors writes wide numbers first
        ("a", "I16", (2,), 2),
    ]
    assert [(entry.start - first, entry.stop - first) for entry in entries] == [(0, 24), (24, 28)]
    assert data[entries[0].start : entries[0].stop] == struct.pack("<6f", *range(6))


@pytest.mark.parametrize("chunk", [8, 16, 1 << 20])
def test_a_copy_has_the_same_bytes_and_its_hash_is_that_of_the_file(file, monkeypatch, chunk):
    monkeypatch.setattr(weights, "CHUNK", chunk)
    read = []

    target, digest = copy(file, advance=read.append)

    assert target.read_bytes() == file.read_bytes()
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest() == weights.sha256(file)
    assert sum(read) == file.stat().st_size


def test_a_link_is_the_same_file_and_is_hashed_all_the_same(file):
    target, digest = copy(file, link=True)
    assert target.samefile(file)
    assert digest == weights.sha256(file)


def test_a_link_leads_to_the_file_itself_where_the_source_is_a_symbolic_link_as_in_the_hub_cache(
    file,
):
    alias = file.with_name("alias.safetensors")
    alias.symlink_to(file.name)
    target, _ = copy(alias, link=True)
    assert not target.is_symlink()
    assert target.samefile(file)


def test_copies_where_the_file_system_cannot_link(file, monkeypatch):
    def refuse(_self, _target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    target, _ = copy(file, link=True)
    assert not target.samefile(file)
    assert target.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("sign", [0, -1])
@pytest.mark.parametrize("which", ["nan", "infinity"])
def test_refuses_nan_and_infinity_wherever_in_a_tensor_and_names_it(
    tmp_path, monkeypatch, dtype, sign, which
):
    monkeypatch.setattr(weights, "CHUNK", 16)
    integer, nan, infinity, largest = BITS[dtype]
    bad = nan if which == "nan" else infinity
    values = torch.full((33,), largest, dtype=integer)
    values[32] = bad if sign == 0 else bad - 2 ** (8 * values.itemsize - 1)  # the sign's bit
    path = tmp_path / "shard.safetensors"
    save_file({"fine": torch.ones(4), "layers.1.weight": values.view(dtype)}, path)

    with pytest.raises(VictorError, match=r"shard.*: tensor layers\.1\.weight holds NaN or inf"):
        copy(path)


@pytest.mark.parametrize("dtype", BITS)
def test_takes_the_largest_finite_numbers_of_both_signs_and_integers_that_look_like_nan(
    tmp_path, dtype
):
    integer, nan, _, largest = BITS[dtype]
    lowest = largest - 2 ** (8 * torch.empty(0, dtype=integer).itemsize - 1)
    finite = torch.tensor([largest, lowest, 0, -1 + 1], dtype=integer).view(dtype)
    assert finite[0] == torch.finfo(dtype).max
    assert finite[1] == torch.finfo(dtype).min
    path = tmp_path / "shard.safetensors"
    save_file({"finite": finite, "integers": torch.tensor([nan, -1], dtype=integer)}, path)
    target, _ = copy(path)
    assert target.read_bytes() == path.read_bytes()


def damaged(file, kind):
    data = file.read_bytes()
    first = 8 + struct.unpack("<Q", data[:8])[0]
    gap = data.replace(b"[24,28]", b"[25,29]") + b"x"
    return {
        "one byte short": data[:-1],
        "only the header": data[:first],
        "half the header": data[: first // 2],
        "three bytes": data[:3],
        "empty": b"",
        "longer": data + b"x",
        "a web page": b"<!doctype html><html>not found</html>",
        "a list": struct.pack("<Q", 2) + b"[]",
        "no offsets": struct.pack("<Q", 8) + b'{"a":{}}',
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 28\n",
        "a gap": gap,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("one byte short", r"truncated: \d+ bytes, and its header promises \d+"),
        ("only the header", r"truncated: \d+ bytes, and its header promises \d+"),
        ("half the header", "truncated within its header"),
        ("three bytes", "truncated within its header"),
        ("empty", "truncated within its header"),
        ("longer", r"too long: \d+ bytes, and its header promises \d+"),
        ("a web page", "not a safetensors file"),
        ("a list", "not a safetensors file"),
        ("no offsets", "not a safetensors file"),
        ("a pointer", "a Git LFS pointer, not the weights\n  fix: git lfs pull"),
        ("a gap", "its header leaves gaps between tensors"),
    ],
)
def test_says_what_is_wrong_with_a_damaged_file(file, kind, sentence):
    file.write_bytes(damaged(file, kind))
    with pytest.raises(VictorError, match=rf"model\.safetensors: {sentence}"):
        weights.read_entries(file)


def test_says_that_a_file_is_missing(tmp_path):
    with pytest.raises(VictorError, match=r"none\.safetensors: no such file"):
        weights.read_entries(tmp_path / "none.safetensors")


@pytest.mark.parametrize("old", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("new", ["F32", "F16", "BF16"])
def test_casts_every_floating_point_tensor_as_torch_does_and_no_other(
    tmp_path, monkeypatch, old, new
):
    monkeypatch.setattr(weights, "CHUNK", 16)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weight": torch.randn(7, 3, generator=generator).to(old),
        "half": torch.randn(5, generator=generator).half(),
        "ids": torch.arange(5),
        "none": torch.empty(0, 4, dtype=old),
    }
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file(tensors, source)

    digest = weights.cast_file(source, target, dtype=new, advance=nothing)

    assert digest == weights.sha256(source)
    wanted = getattr(torch, weights.NAMES[new])
    found = load_file(target)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor if name == "ids" else tensor.to(wanted)
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


def test_refuses_a_cast_that_overflows_and_says_which_one_would_not(tmp_path):
    source = tmp_path / "old.safetensors"
    save_file({"fine": torch.tensor([65504.0]), "large": torch.tensor([1.0, 65520.0])}, source)
    sentence = r"old\.safetensors: tensor large does not fit into float16\n  fix: use --dtype bf16"
    with pytest.raises(VictorError, match=sentence):
        weights.cast_file(source, tmp_path / "new.safetensors", dtype="F16", advance=nothing)


def test_rewrites_the_tensors_that_change_and_copies_the_rest_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 8)  # so that every tensor comes in several pieces
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    tensors = {
        "half": torch.arange(6.0).bfloat16().view(2, 3),
        "ids": torch.arange(5),
        "other": torch.arange(7.0),
    }
    save_file(tensors, source, {"made": "by hand"})
    before = source.read_bytes()

    # another row for each of two rows: wrong if the shape were lost, or rows taken for columns
    change = {"half": lambda old: old.float() + torch.tensor([10.0, 20.0, 30.0])}
    digest = weights.rewrite_file(source, target, change)

    assert digest == weights.sha256(target)
    assert source.read_bytes() == before
    found = load_file(target)
    assert found.pop("half").tolist() == [[10.0, 21.0, 32.0], [13.0, 24.0, 35.0]]
    assert all(torch.equal(found[name], tensors[name]) for name in ("ids", "other"))
    length = 8 + struct.unpack("<Q", before[:8])[0]
    assert target.read_bytes()[:length] == before[:length]


def test_writes_what_safetensors_reads_with_the_permissions_of_other_files(tmp_path):
    file, other = tmp_path / "state.safetensors", tmp_path / "other"
    other.touch()
    tensors = {
        "a": torch.tensor([1, 2, 3], dtype=torch.uint8),  # by name first, which misaligns the rest
        "moment": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "half": torch.tensor(1.5).bfloat16(),  # no dimension
        "count": torch.tensor([2**40]),
        "index": torch.tensor([-7], dtype=torch.int32),
        "none": torch.empty(0, 4),
    }

    weights.write_file(file, tensors, {"log": "a\nb"})

    found = load_file(file)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"log": "a\nb"}
    assert weights.read_entries(file)[0].name == "count"  # wide numbers first
    assert file.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_a_matrix_a_few_rows_at_a_time(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(weights, "CHUNK", 40)  # no multiple of a row of 3 numbers
    matrix = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    file = tmp_path / "model.safetensors"
    save_file({"before": torch.ones(5), "matrix": matrix, "z": torch.ones(5)}, file)
    (entry,) = (entry for entry in weights.read_entries(file) if entry.name == "matrix")

    parts = list(weights.read_rows(file, entry))

    assert max(map(len, parts)) == 40 // (3 * matrix.itemsize)
    assert np.array_equal(np.concatenate(parts), matrix.float().numpy())
