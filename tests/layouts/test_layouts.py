"""A model in LLaVA's original layout is the model that it was written from, whatever the layout.

Faults planted and caught: a projector layer under the other's name; new rows of zeros; the mean of
the last block only; a tied head written, and an untied one awaited; a head of SigLIP kept; a class
token not counted; sizes never turned; padding on the right; a number format left as it was said.
"""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from tests import originals
from tests.converting import QUICK, left, run
from tests.hub import COMMIT, serving
from tests.tiny import tiny_picture
from victorctl import weights
from victorctl.checkpoint import hash_base, load
from victorctl.inspect import inspect
from victorctl.layouts import streams
from victorctl.layouts.translation import translate
from victorctl.lineage import base_intact, weights_sha256
from victorctl.sections import ConvertSection
from victorctl.sources import open_source

NATIVE = {
    "llava": LlavaForConditionalGeneration,
    "interleave": LlavaForConditionalGeneration,
    "next": LlavaNextForConditionalGeneration,
    "next on siglip": LlavaNextForConditionalGeneration,
    "onevision": LlavaOnevisionForConditionalGeneration,
}
WAYS = {  # how the weights are written: arguments of `write_original`
    "one file": {},
    "shards": {"shards": 3},
    "pickled shards": {"shards": 3, "pickled": True},
}
HEAD = "language_model.lm_head.weight"
WIDE = tiny_picture(1, (60, 30))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Convert a LLaVA 1.5 once as it is written in each way, with every check."""
    folder, results = tmp_path_factory.mktemp("made"), {}
    model = originals.native()
    for way, how in WAYS.items():
        source = originals.write_original(folder / way / "llava-v1.5", model, **how)
        out = folder / way / "victor"
        results[way] = (source, out, run(source, out, flags={"victor.registers": 5}))
    return results


def write_translated(source, out, **settings):
    """Translate an original of a family that convert may not know yet."""
    translation = translate(open_source(str(source)), ConvertSection(**settings))
    found = translation.weights()
    out.mkdir()
    written = streams.write(found, out, None, lambda _count: None)
    for file in translation.staged.folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    assert streams.check_kept(written, out)
    return translation


def same_weights(out, expected, native):
    """Load a folder with the native class, and compare all that it holds."""
    model, report = native.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    rows = model.config.text_config.vocab_size
    expected = (
        originals.grown(expected, rows)
        if rows != len(expected.get_input_embeddings().weight)
        else expected
    )
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    return model.eval()


@torch.no_grad()
def logits(model, out, picture=WIDE):
    processor = AutoProcessor.from_pretrained(out)
    inputs = processor(images=picture, text="<image> what is this ?", return_tensors="pt")
    return model(**inputs).logits


# ---- LLaVA 1.5 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_without_trust_the_folder_is_the_model_that_the_original_was_written_from(made, way):
    _, out, _ = made[way]
    expected = originals.native()
    model = same_weights(out, expected, AutoModelForImageTextToText)
    assert model.config.text_config.vocab_size == 128  # 95 words, 2 more, and up to 64s
    assert model.config.image_token_index == 95
    assert torch.equal(logits(model, out), logits(expected, out))


@pytest.mark.parametrize("way", WAYS)
def test_with_registers_off_the_victor_model_is_that_model_too(made, way):
    _, out, result = made[way]
    model, expected = load(out), originals.grown(originals.native(), 128)
    assert not torch.equal(logits(model, out), logits(expected, out))
    with model.registers_off():
        assert torch.equal(logits(model, out), logits(expected, out))
    assert result["parity"] == {"hashes_equal": True, "max_logit_difference": 0.0}
    assert result["base_intact"] is True
    assert (result["layout"], result["family"]) == ("original", "llava")


def test_tensors_have_the_names_of_llava_hf_and_the_files_those_of_transformers(made):
    _, out, _ = made["pickled shards"]
    shards = sorted(out.glob("model-*.safetensors"))
    assert [file.name for file in shards] == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    names = set().union(*(load_file(file) for file in shards))
    assert len(names) == 116
    outer = {re.sub(r"layers\.\d+\..*", "layers.", name) for name in names}
    assert outer == {
        HEAD,
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.",
        "language_model.model.norm.weight",
        *(
            f"multi_modal_projector.linear_{n}.{part}"
            for n in (1, 2)
            for part in ("weight", "bias")
        ),
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "vision_tower.vision_model.encoder.layers.",
        *(
            f"vision_tower.vision_model.{norm}.{part}"
            for norm in ("pre_layrnorm", "post_layernorm")
            for part in ("weight", "bias")
        ),
    }
    assert "model.safetensors" in left(made["one file"][1])


def test_new_rows_are_the_mean_of_the_others_in_embeddings_and_head(made):
    tensors = load_file(made["one file"][1] / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", HEAD):
        old, new = tensors[name][:95], tensors[name][95:]
        assert new.shape == (33, 32)
        assert torch.equal(new, old.double().mean(0).float().expand(33, 32))


def test_the_mean_is_over_all_blocks_that_were_read(made, tmp_path, monkeypatch):
    source, out, _ = made["one file"]
    monkeypatch.setattr("victorctl.layouts.files.CHUNK", 1000)  # 7 rows of 128 bytes
    run(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_the_record_tells_the_originals_files_and_hashes_and_what_was_made(made):
    source, out, _ = made["pickled shards"]
    (entry,) = json.loads((out / "victor.json").read_text())["stages"]
    assert entry["source"] == {"name": "llava-v1.5", "commit": None, "layout": "original"}
    assert entry["source_files"] == {
        file.name: weights.sha256(file) for file in source.glob("*.bin")
    }
    assert entry["weights_sha256"] == weights_sha256(out)
    assert base_intact(out, hash_base(out))
    assert not base_intact(out, hash_base(out) | {"model-00002-of-00003.safetensors": "0"})


def test_tokens_beside_the_new_ones_are_spelled_as_before(made):
    source, out, _ = made["one file"]
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    for text in ("what is this ?", "UNKNOWN words, and\n\nlines", "<s> a </s>"):
        assert after(text).input_ids == before(text).input_ids
    assert after.convert_tokens_to_ids(["<image>", "<pad>"]) == [95, 96]
    assert after("a <image> b").input_ids.count(95) == 1
    assert (after.pad_token, after.padding_side, after.model_max_length) == ("<pad>", "left", 300)
    ids = json.loads((out / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 96}


def test_the_licence_comes_along_and_pickles_do_not(made):
    _, out, _ = made["pickled shards"]
    assert (out / "LICENSE").read_text() == "terms"
    assert not [name for name in left(out) if name.endswith((".bin", ".bin.index.json"))]


# ---- Other originals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "tied", "rows"),
    [
        ("interleave", "qwen2", True, 192),  # 155 rows and 2, up to 64s
        ("next", "mistral", False, 128),
        ("next on siglip", "llama", False, 128),
        ("next", "qwen2", True, 155),  # has rows to spare, so it keeps its own
        ("onevision", "qwen2", False, 192),
        ("onevision", "qwen2", True, 192),
    ],
)
def test_every_original_is_the_native_model_that_it_was_written_from(
    tmp_path, kind, text, tied, rows
):
    expected = originals.native(kind, text=text, tied=tied)
    more = {"tie_word_embeddings": False} if kind == "interleave" else {}  # only the weights tell
    source = originals.write_original(tmp_path / kind, expected, kind, shards=2, **more)

    write_translated(source, tmp_path / "out")

    model = same_weights(tmp_path / "out", expected, NATIVE[kind])
    config = model.config
    assert (config.text_config.vocab_size, config.image_token_index) == (rows, 95)
    assert config.tie_word_embeddings is tied
    assert config.text_config.model_type == text
    if kind == "onevision":
        assert (config.video_token_index, config.vision_aspect_ratio) == (96, "anyres_max_9")
        assert config.image_grid_pinpoints == originals.GRID
    else:
        assert torch.equal(logits(model, tmp_path / "out"), logits(expected, tmp_path / "out"))


def test_positions_are_turned_as_the_original_says(tmp_path):
    scaling = {"type": "linear", "factor": 2.0}
    source = originals.write_original(
        tmp_path / "llava", originals.native(), rope_theta=1e6, rope_scaling=scaling
    )
    translation = translate(open_source(str(source)), ConvertSection())
    config = AutoConfig.from_pretrained(translation.staged.folder)
    found = config.text_config.rope_parameters
    wanted = {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}
    assert {key: found[key] for key in wanted} == wanted


def test_onevision_counts_the_tokens_that_the_model_gives(tmp_path):
    expected = originals.native("onevision", text="qwen2")
    source = originals.write_original(tmp_path / "original", expected, "onevision")
    write_translated(source, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    pictures = described["image_processor"]
    assert pictures.pop("image_processor_type") == "LlavaOnevisionImageProcessor"
    processor = object.__new__(LlavaOnevisionProcessor)  # whole, it needs torchvision for videos
    processor.image_processor = LlavaOnevisionImageProcessorPil(**pictures)
    processor.num_image_tokens = described["num_image_tokens"]
    processor.vision_aspect_ratio = described["vision_aspect_ratio"]
    assert described["vision_feature_select_strategy"] == "full"  # no token is taken off
    for size in ((60, 30), (30, 61), (40, 40), (200, 150)):
        inputs = processor.image_processor(tiny_picture(1, size), return_tensors="pt")
        with torch.no_grad():
            (tokens,) = expected.get_image_features(**inputs).pooler_output
        sides = inputs["pixel_values"].shape[-2:]
        assert processor._get_number_of_features(*reversed(size), *sides) == len(tokens), size


def test_sizes_are_turned_only_where_not_every_one_is_there_both_ways(tmp_path):
    found = {}
    for name, listed in {
        "both": [[32, 64], [64, 32]],
        "one": [[32, 64], [64, 64]],  # width first in the original, height first in transformers
        "range": "(1x1),...,(2x2)",
    }.items():
        model = originals.native("next")
        source = originals.write_original(
            tmp_path / name, model, "next", image_grid_pinpoints=listed
        )
        translation = translate(open_source(str(source)), ConvertSection())
        found[name] = translation.config["image_grid_pinpoints"]
    assert found == {
        "both": [[32, 64], [64, 32]],
        "one": [[64, 32], [64, 64]],
        "range": [[32, 32], [32, 64], [64, 32], [64, 64]],
    }


def test_a_head_that_is_tied_is_not_written_though_the_original_holds_one(tmp_path):
    expected = originals.native(tied=True)
    source = originals.write_original(tmp_path / "llava", expected)
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, source / "model.safetensors", {"format": "pt"})
    run(source, tmp_path / "out")
    assert HEAD not in load_file(tmp_path / "out" / "model.safetensors")
    same_weights(tmp_path / "out", expected, LlavaForConditionalGeneration)


def test_a_qwen_without_a_head_is_tied_whatever_its_configuration_says_and_that_is_said(tmp_path):
    expected = originals.native(text="qwen2", tied=True)
    source = originals.write_original(tmp_path / "llava", expected, tie_word_embeddings=False)
    said = run(source, tmp_path / "out")["warnings"]
    assert [note for note in said if note.startswith("the embeddings are the head, too")]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


# ---- Options -------------------------------------------------------------------------------------


def test_another_number_format_is_cast_tensor_by_tensor_and_proved(made, tmp_path):
    result = run(made["shards"][0], tmp_path / "out", flags={"convert.dtype": "bf16"})
    assert result["base_intact"] is False
    assert result["parity"]["hashes_equal"] is False
    expected = originals.grown(originals.native(), 128).bfloat16()
    model = load(tmp_path / "out")
    for name, tensor in expected.state_dict().items():
        found = model.state_dict()[name]
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pickled", [False, True])
def test_the_originals_number_format_is_kept_and_written_into_the_configuration(
    tmp_path, dtype, pickled
):
    model = originals.native().to(dtype)
    source = originals.write_original(
        tmp_path / "llava", model, pickled=pickled, torch_dtype="float32"
    )
    result = run(source, tmp_path / "out", flags=QUICK | {"convert.verify": "hash"})
    assert result["parity"]["hashes_equal"] is True
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert load(tmp_path / "out").dtype == dtype


@pytest.mark.parametrize(
    "flags",
    [
        {"convert.verify": "hash"},
        {"convert.verify": "none", "victor.init": "visual"},
        {"convert.verify": "full"},  # and no memory to do it
    ],
)
def test_shards_are_found_whatever_is_proved(made, tmp_path, monkeypatch, flags):
    source, out, _ = made["shards"]
    monkeypatch.setattr(sys.modules["victorctl.convert"], "free_memory", lambda _device: 0)
    result = run(source, tmp_path / "out", flags=flags | {"victor.registers": 5})
    assert result["parity"]["hashes_equal"] is (None if flags["convert.verify"] == "none" else True)
    assert weights_sha256(tmp_path / "out") == weights_sha256(out)


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(made, tmp_path):
    result = run(made["pickled shards"][0], tmp_path / "out", flags={}, dry_run=True)
    assert left(tmp_path) == []
    assert (result["layout"], result["layers"], result["visual_tokens"]) == ("original", 6, 16)
    assert result["base_intact"] is True


def test_a_hub_id_is_fetched_its_pickles_too(made, tmp_path, monkeypatch):
    _, out, _ = made["one file"]
    source = originals.write_original(tmp_path / "llava", originals.native(), pickled=True)
    with serving(monkeypatch, tmp_path / "cache", {"ada/llava": source}) as hub:
        dry = run("ada/llava", tmp_path / "out", dry_run=True)
        assert "pytorch_model.bin" not in hub.fetched
        run("ada/llava", tmp_path / "out", flags=QUICK)
    assert dry["layout"] == "original"
    found, expected = (load_file(one / "model.safetensors") for one in (tmp_path / "out", out))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["source"] == {"name": "ada/llava", "commit": COMMIT, "layout": "original"}


@pytest.mark.parametrize("way", ["shards", "pickled shards"])
def test_inspect_describes_what_it_would_become(made, way):
    source, _, _ = made[way]
    found = inspect(str(source))
    assert (found["layout"], found["family"], found["backbone"]) == ("original", "llava", "llama")
    expected = originals.grown(originals.native(), 128)
    assert found["parameters"] == sum(parameter.numel() for parameter in expected.parameters())
    assert (found["dtype"], found["visual_tokens"], found["victor"]) == ("float32", 16, None)
