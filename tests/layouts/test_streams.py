"""Translated weights are written in a stream, proved, and whole or not at all.

Faults planted and caught: hashes not compared; temporary files left; disk space not looked at.
"""

import subprocess
import sys

import pytest
import torch

from tests import originals
from tests.converting import QUICK, left, run
from victorctl import weights
from victorctl.errors import CheckFailed, VictorError
from victorctl.layouts import files, names, streams


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_whatever_stops_it_leaves_nothing_and_the_next_run_works(
    tmp_path, model, monkeypatch, failure, pickled
):
    source = originals.write_original(tmp_path / "llava", model, pickled=pickled)
    seen = []

    def stop(*_given):
        seen.append(1)
        if len(seen) == 30:
            raise failure

    with monkeypatch.context() as patch:
        patch.setattr(weights, "check_finite", stop)
        expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else VictorError
        with pytest.raises(expected):
            run(source, tmp_path / "deep" / "out")
    assert left(tmp_path) == ["llava"]
    run(source, tmp_path / "deep" / "out")
    assert left(tmp_path / "deep") == ["out"]


def test_of_a_pickle_only_what_is_written_is_turned_into_bytes(tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "x.bin")
    found = [entry.name for entry, _ in files.pieces(tmp_path / "x.bin", {"b"}, ())]
    assert found == ["b"]


def test_nothing_is_left_in_the_folder_for_temporary_files(llava, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    run(llava, tmp_path / "out")
    (llava / "model.safetensors").unlink()
    with pytest.raises(VictorError):
        run(llava, tmp_path / "other")
    assert left(tmp_path / "tmp") == []


def test_disk_space_is_checked_before_anything_is_written(llava, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _place: type("Disk", (), {"free": 1 << 20})())
    with pytest.raises(VictorError, match=r"out: needs .*, and its disk has .* free"):
        run(llava, llava.parent / "out")
    assert left(llava.parent) == ["llava"]


def test_a_disk_that_lies_is_found_out(llava, tmp_path, monkeypatch):
    whole = streams.write

    def damaged(found, folder, cast, advance):
        written = whole(found, folder, cast, advance)
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        return written

    monkeypatch.setattr(sys.modules["victorctl.convert"], "write", damaged)
    with pytest.raises(CheckFailed, match="is not what was read as model"):
        run(llava, tmp_path / "out", flags=QUICK | {"convert.verify": "hash"})
    assert left(tmp_path) == ["llava"]


def test_another_model_than_the_originals_is_found_out(llava, tmp_path, monkeypatch):
    rules = [
        (pattern, new.replace("linear_1", "linear_x").replace("linear_2", "linear_1"))
        for pattern, new in names.RULES
    ]
    rules = tuple((pattern, new.replace("linear_x", "linear_2")) for pattern, new in rules)
    monkeypatch.setattr(names, "RULES", rules)
    with pytest.raises(CheckFailed, match="the logits of the folder's base model differ"):
        run(llava, tmp_path / "out", flags={})
    assert left(tmp_path) == ["llava"]


@pytest.mark.slow
def test_however_large_the_weights_are_only_blocks_of_them_are_in_memory(tmp_path):
    script = """
import json, resource, sys
from pathlib import Path
import torch
from victorctl.layouts import files, names, streams
from victorctl.layouts.names import EMBEDDINGS
folder = Path(sys.argv[1])
rows, width = 60_000, 1024  # 245 MB in single precision, written with holes
size = rows * width * 4
entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}
text = json.dumps({"model.embed_tokens.weight": entry}).encode()
text += b" " * (-len(text) % 8)
with (folder / "model.safetensors").open("wb") as out:
    out.write(len(text).to_bytes(8, "little") + text)
    out.truncate(8 + len(text) + size)
config = {"text_config": {"vocab_size": rows + 50}, "model_type": "llava", "architectures": ["x"],
          "vision_config": {"num_hidden_layers": 1}, "tie_word_embeddings": True}
part = streams.Part(folder / "model.safetensors", "x", names.of_model(config))
found = streams.plan([part], None, config, rows)
(folder / "out").mkdir()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
written = streams.write(found, folder / "out", "BF16", lambda count: None)
streams.check_kept(written, folder / "out")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
print((folder / "out" / "model.safetensors").stat().st_size)
"""
    shown = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    megabytes, size = map(int, shown.stdout.split())
    assert megabytes < 64
    assert size > 2 * 60_050 * 1024
