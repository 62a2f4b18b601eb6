"""What `convert` refuses, and that a failure leaves nothing behind."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BioGptConfig, LlavaForConditionalGeneration

from tests.converting import QUICK, left, run
from tests.hub import serving
from tests.tiny import tiny_llava
from victorctl import parity, weights
from victorctl.errors import CheckFailed, VictorError

convert_module = sys.modules["victorctl.convert"]  # `victorctl.convert` is the function


@pytest.fixture
def llava(tmp_path):
    return tiny_llava(tmp_path / "llava")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("place", ["copy_file", "read_rows"])
def test_whatever_stops_it_leaves_nothing_and_the_next_run_works(
    llava, tmp_path, monkeypatch, failure, place
):
    whole = getattr(weights, place)

    def stop(*given, **more):
        if place == "copy_file":
            whole(*given, **more)
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(weights, place, stop)
        expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else VictorError
        with pytest.raises(expected):
            run(llava, tmp_path / "deep" / "out")
    assert left(tmp_path) == ["llava"]

    run(llava, tmp_path / "deep" / "out")
    assert left(tmp_path / "deep") == ["out"]


def test_ctrl_c_while_copying_leaves_nothing(llava, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 1024)
    monkeypatch.setattr(weights, "check_finite", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            run(llava, tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert left(tmp_path) == ["llava"]


def broken(source, kind):
    """Damage a source, and return what convert must say."""
    file = source / "model.safetensors"
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(file)
    if kind == "nan":
        tensors["language_model.model.layers.1.mlp.up_proj.weight"][2, 1] = torch.nan
        save_file(tensors, file, {"format": "pt"})
        return r"model\.safetensors: tensor language_model\S*1\.mlp\.up_proj\.weight holds NaN"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        return r"model\.safetensors: truncated: 3\d\d,\d+ bytes, and its header promises"
    if kind == "missing":
        file.unlink()
        return "llava: no weights"
    if kind == "another model":
        (source / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
        return "llava: a model of type llama is of no family that can be converted"
    if kind == "no model":
        (source / "config.json").unlink()
        return r"llava: no config\.json, so this is no model folder"
    config["text_config"] = BioGptConfig(  # untried, so that only running it can tell
        vocab_size=95, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, image_token_index=4,
    ).to_dict()  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaForConditionalGeneration.config_class.from_dict(config)
    )
    model.save_pretrained(source)
    return "the text model BioGptModel cannot be run in slices"


@pytest.mark.parametrize(
    "kind", ["nan", "truncated", "missing", "another model", "no model", "another text model"]
)
def test_a_source_that_cannot_be_converted_is_named_and_nothing_is_left(llava, tmp_path, kind):
    sentence = broken(llava, kind)
    with pytest.raises(VictorError, match=sentence):
        run(llava, tmp_path / "deep" / "out", flags={})
    assert left(tmp_path) == ["llava"]


def test_no_such_folder(tmp_path):
    with pytest.raises(VictorError, match=r"none: no such folder\n  fix: check the path"):
        run(tmp_path / "none", tmp_path / "out")


def test_an_existing_output_is_kept_unless_it_is_ours_and_may_go(llava, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("x")
    for overwrite, sentence in ((False, "exists already"), (True, "not written by victorctl")):
        with pytest.raises(VictorError, match=sentence):
            run(llava, tmp_path / "theirs", overwrite=overwrite)
    assert left(tmp_path / "theirs") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("llava", "which is read"),
        ("llava/inside", "which is read"),
        (".", "holds more than victorctl wrote there: llava"),
    ],
)
def test_the_source_is_never_overwritten(llava, tmp_path, out, sentence):
    (llava / "victor.json").write_text("{}")
    (tmp_path / "victor.json").write_text("{}")
    with pytest.raises(VictorError, match=sentence):
        run(llava, tmp_path / out, overwrite=True)
    assert "model.safetensors" in left(llava)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"device": "tpu"}, "--device tpu: no such device"),
        ({"attn": "flash_attention_2"}, "--attn flash_attention_2: takes the gap"),
    ],
)
def test_device_and_attention_are_checked_before_the_source_is_looked_for(
    tmp_path, monkeypatch, more, sentence
):
    monkeypatch.setattr(convert_module, "open_source", lambda *_, **__: pytest.fail("opened"))
    for dry_run in (True, False):
        with pytest.raises(VictorError, match=sentence):
            run("ada/llava", tmp_path / "out", dry_run=dry_run, **more)


def test_an_adapter_beside_the_model_is_refused_also_on_the_hub(llava, tmp_path, monkeypatch):
    (llava / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with (
        serving(monkeypatch, tmp_path / "cache", {"ada/llava": llava}) as hub,
        pytest.raises(VictorError, match=r"adapter_config\.json: an adapter of PEFT"),
    ):
        run("ada/llava", tmp_path / "out")
    assert "model.safetensors" not in hub.fetched


def test_a_full_disk_is_told_before_anything_is_written(llava, tmp_path, monkeypatch):
    full = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr("victorctl.folders.shutil.disk_usage", lambda _place: full)
    sentence = (
        r"out: needs 389 KiB and 64\.0 MiB to spare, and its disk has 977 KiB free\n"
        r"  fix: free some space, or choose an --out on another disk, or use --link$"
    )
    with pytest.raises(VictorError, match=sentence):
        run(llava, tmp_path / "out")
    with pytest.raises(VictorError, match=r"an --out on another disk$"):
        run(llava, tmp_path / "out", flags=QUICK | {"convert.link": True})
    assert left(tmp_path) == ["llava"]


def test_an_output_is_needed(llava):
    with pytest.raises(VictorError, match="convert needs a folder to write\n  fix: add --out"):
        run(llava, None)


def test_a_copy_that_differs_is_found_by_its_hash(llava, tmp_path, monkeypatch):
    whole = weights.copy_file

    def flip(source, target, **more):
        digest = whole(source, target, **more)
        data = bytearray(target.read_bytes())
        data[-1] ^= 1  # the lowest bit of one number
        target.write_bytes(data)
        return digest

    monkeypatch.setattr(weights, "copy_file", flip)
    with pytest.raises(CheckFailed, match="what was written is not what was read"):
        run(llava, tmp_path / "out", flags=QUICK | {"convert.verify": "hash"})
    assert left(tmp_path) == ["llava"]


@pytest.mark.parametrize(
    ("call", "who"), [(2, "the folder's base model"), (3, "the Victor model without registers")]
)
def test_logits_that_differ_are_found(llava, tmp_path, monkeypatch, call, who):
    whole, calls = parity.logits, []

    def disturb(model, inputs):
        calls.append(model)
        return whole(model, inputs) + (1e-6 if len(calls) == call else 0)

    monkeypatch.setattr(parity, "logits", disturb)
    with pytest.raises(CheckFailed, match=f"the logits of {who} differ"):
        run(llava, tmp_path / "out", flags={})
    assert left(tmp_path) == ["llava"]
