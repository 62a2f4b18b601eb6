"""One test for each promise of `convert`; the parts have tests of their own."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GPTNeoXConfig,
    LlavaForConditionalGeneration,
    dynamic_module_utils,
)

from tests.hub import COMMIT, serving
from tests.tiny import tiny_llava, tiny_model, tiny_picture, tiny_processor
from victorctl import parity, weights
from victorctl.checkpoint import load, weights_sha256
from victorctl.convert import convert
from victorctl.errors import CheckFailed, VictorError
from victorctl.recipe import Run, load_recipe

LAYOUTS = ("one file", "shards", "hub names")
TEXT = "<image> what is this ?"
ADDED = {
    "modeling_victor.py",
    "victor.json",
    "victor.safetensors",
    "model.safetensors.index.json",
    "model.safetensors.index.victor.json",
}
QUICK = {"convert.verify": "none", "victor.init": "embeddings"}


def source_of(layout, folder):
    """Write a tiny LLaVA as its three kinds of author do."""
    tiny_llava(folder, max_shard_size="100KB" if layout == "shards" else "1GB")
    if layout == "hub names":  # as on llava-hf's pages: older than transformers' own names
        tensors = load_file(folder / "model.safetensors")
        renamed = {
            name.replace("vision_tower.", "vision_tower.vision_model."): tensor
            for name, tensor in tensors.items()
        }
        assert {name.split(".")[0] for name in renamed} == {
            "language_model",
            "vision_tower",
            "multi_modal_projector",
        }
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["torch_dtype"] = config.pop("dtype")
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(source, out, *, flags=QUICK, **more):
    options = {"overwrite": False, "dry_run": False, "quiet": True, "device": "cpu"} | more
    return convert(str(source), recipe=load_recipe(flags=flags), run=Run(out=out, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Convert each layout once, with every check."""
    folder, results = tmp_path_factory.mktemp("made"), {}
    for layout in LAYOUTS:
        source = source_of(layout, folder / layout / "llava")
        out = folder / layout / "victor"
        results[layout] = (source, out, run(source, out, flags={"victor.registers": 5}))
    return results


@pytest.fixture
def llava(tmp_path):
    return tiny_llava(tmp_path / "llava")


@torch.no_grad()
def logits(model):
    inputs = tiny_processor()(images=tiny_picture(), text=TEXT, return_tensors="pt")
    return model(**inputs).logits


def left(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- What comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_trust_the_folder_is_the_source_bit_for_bit_and_nothing_is_reported(made, layout):
    _, out, _ = made[layout]
    model, report = AutoModelForImageTextToText.from_pretrained(
        out, output_loading_info=True, trust_remote_code=False
    )
    expected = tiny_model()
    assert type(model) is LlavaForConditionalGeneration
    assert not any(report.values())
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(logits(model.eval()), logits(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_trust_it_is_the_victor_model_and_nothing_is_reported(
    made, layout, tmp_path, monkeypatch
):
    _, out, _ = made[layout]
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    model, report = AutoModelForImageTextToText.from_pretrained(
        out, output_loading_info=True, trust_remote_code=True
    )
    assert type(model).__name__ == "VictorLlava"
    assert type(model).__module__.startswith("transformers_modules.")
    assert not any(report.values())
    assert torch.equal(logits(model.eval()), logits(load(out)))
    assert not torch.equal(logits(model), logits(tiny_model()))
    with model.registers_off():
        assert torch.equal(logits(model), logits(tiny_model()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_of_the_source_is_there_unchanged_but_its_configuration(made, layout):
    source, out, _ = made[layout]
    assert set(left(out)) == set(left(source)) | ADDED
    same = set(left(source)) - {"config.json", "model.safetensors.index.json"}
    assert {name for name in same if name.endswith(".safetensors")}
    for name in same:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name

    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert after.pop("victor") == {
        "registers": 5,
        "drop_layer": 2,
        "positions": "overlay",
        "adapter": None,
    }
    assert set(after.pop("auto_map").values()) == {"modeling_victor.VictorLlava"}
    assert after == before


def test_the_processor_reads_as_before(made):
    source, out, _ = made["one file"]
    before, after = (AutoProcessor.from_pretrained(folder) for folder in (source, out))
    for text in (TEXT, "no picture", "<image> <image> two ?", "UNKNOWN words, and\n\nlines"):
        assert after.tokenizer(text).input_ids == before.tokenizer(text).input_ids
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    prompts = [
        each.apply_chat_template(messages, add_generation_prompt=True) for each in (before, after)
    ]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_says_what_was_made_and_proved(made, layout):
    _, out, result = made[layout]
    assert list(result)[:6] == ["out", "family", "backbone", "layers", "drop_layer", "registers"]
    assert result["out"] == str(out)
    assert result["parity"] == {"hashes_equal": True, "max_logit_difference": 0.0}
    numbers = ("layers", "drop_layer", "registers", "visual_tokens")
    assert [result[name] for name in numbers] == [6, 2, 5, 16]
    assert (result["family"], result["backbone"]) == ("llava", "llama")
    assert result["base_intact"] is True
    assert result["warnings"] == []
    assert 0 < result["seconds"] < 600
    assert 10**7 < result["peak_memory_bytes"] < 10**11
    json.dumps(result)


def test_the_record_tells_settings_hashes_and_where_it_came_from(made):
    source, out, _ = made["shards"]
    (entry,) = json.loads((out / "victor.json").read_text())["stages"]
    shards = {file.name: weights.sha256(file) for file in source.glob("*.safetensors")}
    assert len(shards) == 4
    assert entry["command"] == "convert"
    assert entry["settings"]["victor"]["drop_layer"] == 2  # resolved
    assert entry["source"] == {"name": "llava", "commit": None}
    assert entry["source_files"] == shards
    assert entry["parent_sha256"] == weights_sha256(source)
    assert entry["weights_sha256"] == weights_sha256(out)
    assert entry["base_intact"] is True
    assert str(source.parent) not in (out / "victor.json").read_text()


def test_registers_are_drawn_like_the_pictures_tokens_unless_embeddings_are_asked_for(
    llava, tmp_path, made
):
    _, out, _ = made["one file"]
    run(llava, tmp_path / "embeddings", flags=QUICK | {"victor.registers": 5})
    visual, text = (
        load_file(folder / "victor.safetensors")["victor.registers.weight"]
        for folder in (out, tmp_path / "embeddings")
    )
    assert visual.shape == text.shape == (5, 32)
    model = tiny_model()
    with torch.no_grad():
        pixels = parity.pictures(llava, 16)
        tokens = torch.cat(parity.visual_tokens(model, pixels))
    embeddings = model.get_input_embeddings().weight
    # the same draw, in units of each distribution
    for registers, like in ((visual, tokens), (text, embeddings)):
        units = (registers - like.mean(0)) / like.std(0, unbiased=False)
        drawn = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(units, drawn, atol=2e-3)


def test_registers_have_the_number_format_of_the_base(tmp_path):
    source = tiny_llava(tmp_path / "llava", dtype=torch.bfloat16)
    run(source, tmp_path / "out", flags={})
    assert load_file(tmp_path / "out" / "victor.safetensors")["victor.registers.weight"].dtype == (
        torch.bfloat16
    )
    assert load(tmp_path / "out").dtype == torch.bfloat16


# ---- Options -------------------------------------------------------------------------------------


def test_without_proof_no_model_is_built(llava, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "native_model", lambda *_args, **_more: pytest.fail("built"))
    result = run(llava, tmp_path / "hash", flags=QUICK | {"convert.verify": "hash"})
    assert result["parity"] == {"hashes_equal": True, "max_logit_difference": None}
    result = run(llava, tmp_path / "none")
    assert result["parity"] == {"hashes_equal": None, "max_logit_difference": None}
    assert weights_sha256(tmp_path / "hash") == weights_sha256(tmp_path / "none")


def test_another_number_format_is_cast_on_the_way_proved_and_not_called_intact(llava, tmp_path):
    result = run(llava, tmp_path / "out", flags={"convert.dtype": "bf16"})
    assert result["base_intact"] is False
    assert result["parity"] == {"hashes_equal": False, "max_logit_difference": 0.0}
    model = load(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = tiny_model().bfloat16().state_dict()
    for name, tensor in expected.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["weights_sha256"] == weights_sha256(tmp_path / "out")
    assert entry["parent_sha256"] == weights_sha256(llava)


def test_linked_shards_take_no_room_and_outlive_the_source(llava, tmp_path):
    before = weights_sha256(llava)
    run(llava, tmp_path / "out", flags=QUICK | {"convert.link": True})
    shard = tmp_path / "out" / "model.safetensors"
    assert shard.samefile(llava / "model.safetensors")
    run(llava, tmp_path / "out", flags=QUICK, overwrite=True)
    assert not shard.samefile(llava / "model.safetensors")
    assert weights_sha256(llava) == before


def test_a_dry_run_checks_and_writes_nothing(llava, tmp_path):
    result = run(llava, tmp_path / "deep" / "out", dry_run=True)
    assert result["parity"] == {"hashes_equal": None, "max_logit_difference": None}
    assert result["drop_layer"] == 2
    assert left(tmp_path) == ["llava"]
    (llava / "model.safetensors").write_bytes(b"")
    with pytest.raises(VictorError, match="truncated"):
        run(llava, tmp_path / "out", dry_run=True)


def test_a_source_without_a_processor_is_converted_with_a_warning_and_proved(llava, tmp_path):
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (llava / name).unlink()
    result = run(llava, tmp_path / "out", flags={})
    assert len(result["warnings"]) == 2
    assert result["parity"]["max_logit_difference"] == 0.0
    assert "tokenizer.json" not in left(tmp_path / "out")


def test_foreign_code_and_pickles_are_left_behind(llava, tmp_path):
    for name in ("modeling_evil.py", "pytorch_model.bin", "optimizer.pt", "rng_state.pth"):
        (llava / name).write_text("x")
    (llava / "LICENSE").write_text("terms")
    run(llava, tmp_path / "out")
    extra = set(left(tmp_path / "out")) - ADDED
    assert extra == set(left(llava)) - {
        "modeling_evil.py",
        "pytorch_model.bin",
        "optimizer.pt",
        "rng_state.pth",
    }


def test_a_hub_id_is_fetched_and_recorded_with_its_commit(llava, tmp_path, monkeypatch):
    with serving(monkeypatch, tmp_path / "cache", {"ada/llava": llava}) as hub:
        dry = run("ada/llava", tmp_path / "out", dry_run=True)
        assert "model.safetensors" not in hub.fetched
        result = run("ada/llava", tmp_path / "out", flags=QUICK | {"convert.verify": "hash"})
    assert dry["layers"] == result["layers"] == 6
    assert result["parity"]["hashes_equal"]
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["source"] == {"name": "ada/llava", "commit": COMMIT}
    for file in (tmp_path / "out").iterdir():
        assert not file.is_symlink()  # the cache holds links
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        llava / "model.safetensors"
    ).read_bytes()


# ---- What goes wrong -----------------------------------------------------------------------------


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
    with pytest.raises(KeyboardInterrupt):
        run(llava, tmp_path / "out")
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
        return "llava: a model of type llama is no LLaVA"
    if kind == "no model":
        (source / "config.json").unlink()
        return r"llava: no config\.json, so this is no model folder"
    config["text_config"] = GPTNeoXConfig(
        vocab_size=95, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, image_token_index=4,
    ).to_dict()  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaForConditionalGeneration.config_class.from_dict(config)
    )
    model.save_pretrained(source)
    return "the text model GPTNeoXModel cannot be run in slices"


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


@pytest.mark.parametrize("out", ["llava", "."])
def test_the_source_is_never_overwritten(llava, tmp_path, out, monkeypatch):
    (llava / "victor.json").write_text("{}")
    (tmp_path / "victor.json").write_text("{}")
    with pytest.raises(VictorError, match="holds the source itself"):
        run(llava, tmp_path / out, overwrite=True)
    assert "model.safetensors" in left(llava)


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
