"""One test for each promise of `convert`."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    dynamic_module_utils,
)

from tests.converting import QUICK, left, run
from tests.hub import COMMIT, serving
from tests.tiny import tiny_llava, tiny_model, tiny_picture, tiny_processor
from victorctl import parity, weights
from victorctl.checkpoint import load
from victorctl.errors import VictorError
from victorctl.lineage import weights_sha256

LAYOUTS = ("one file", "shards", "hub names")
TEXT = "<image> what is this ?"
ADDED = {
    "modeling_victor.py",
    "victor.json",
    "victor.safetensors",
    "model.safetensors.index.json",
    "model.safetensors.index.victor.json",
}


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


def test_only_one_model_is_in_memory_at_a_time(llava, tmp_path, monkeypatch):
    whole, alive, seen = LlavaForConditionalGeneration.__init__, weakref.WeakSet(), []

    def count(self, *given, **more):
        seen.append((type(self).__name__, len(alive)))
        whole(self, *given, **more)
        self.__dict__["round"] = [self]  # as hooks may do: only the garbage collector frees it
        alive.add(self)

    monkeypatch.setattr(LlavaForConditionalGeneration, "__init__", count)
    monkeypatch.setattr("victorctl.conversion.count_visual_tokens", lambda *_: None)  # no weights
    run(llava, tmp_path / "out", flags={})
    native = "LlavaForConditionalGeneration"
    assert seen == [(native, 0), (native, 0), ("VictorLlava", 0)]


# ---- Options -------------------------------------------------------------------------------------


def test_without_proof_no_model_is_built(llava, tmp_path, monkeypatch):
    native = parity.native_model

    def of_shapes(*args, **how):
        assert how["device"].type == "meta"
        return native(*args, **how)

    monkeypatch.setattr(parity, "native_model", of_shapes)
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


def test_a_cast_is_written_into_every_part_of_the_configuration_that_named_the_old_format(
    tmp_path,
):
    source = source_of("hub names", tmp_path / "llava")
    config = json.loads((source / "config.json").read_text())
    config["text_config"].pop("dtype", None)
    config["text_config"]["torch_dtype"] = "float32"
    config["vision_config"].pop("dtype", None)
    (source / "config.json").write_text(json.dumps(config))

    run(source, tmp_path / "out", flags=QUICK | {"convert.dtype": "fp16"})

    found = json.loads((tmp_path / "out" / "config.json").read_text())
    parts = (found, found["text_config"], found["vision_config"])
    assert [part.get("dtype") for part in parts] == ["float16", "float16", None]
    assert [part.get("torch_dtype") for part in parts] == [None] * 3


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
    assert result["not_checked"] == [
        "whether all weights are numbers",
        "whether both models agree: neither was run",
    ]
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
        unknown = run("ada/llava", tmp_path / "out", flags={"convert.dtype": "bf16"}, dry_run=True)
        assert "model.safetensors" not in hub.fetched
        result = run("ada/llava", tmp_path / "out", flags=QUICK | {"convert.verify": "hash"})
    assert dry["layers"] == result["layers"] == 6
    assert dry["not_checked"][0] == "weights and disk space: nothing large was downloaded"
    assert (dry["base_intact"], unknown["base_intact"]) == (True, None)
    assert result["not_checked"] == []
    assert result["parity"]["hashes_equal"]
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["source"] == {"name": "ada/llava", "commit": COMMIT}
    for file in (tmp_path / "out").iterdir():
        assert not file.is_symlink()  # the cache holds links
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        llava / "model.safetensors"
    ).read_bytes()
