"""What has no translation, or would do harm, is refused by name: nothing is run or written."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import originals
from tests.converting import QUICK, left, run
from tests.hostile import HOSTILE
from tests.tiny import tiny_llava
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe

MARK = "ran.txt"


@pytest.fixture(scope="module", autouse=True)
def towers():
    with pytest.MonkeyPatch.context() as patch:
        originals.know_tiny_towers(patch)
        yield


@pytest.fixture(scope="module")
def model():
    return originals.native()


@pytest.fixture(scope="module")
def written(tmp_path_factory, model):
    return originals.write_original(tmp_path_factory.mktemp("written") / "llava", model)


@pytest.fixture
def llava(tmp_path, written):
    return Path(shutil.copytree(written, tmp_path / "llava"))


def change(folder, **more):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | more
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refused(folder, sentence, out="out", **flags):
    """Convert in vain, and find nothing new beside the source."""
    before = left(folder.parent)
    with pytest.raises(VictorError, match=sentence) as caught:
        run(folder, folder.parent / out, flags=QUICK | flags)
    assert left(folder.parent) == before
    return caught.value


# ---- By the configuration ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"mm_projector_type": "linear"},
            "llava: mm_projector_type 'linear', and .* only mlp2x_gelu",
        ),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity'"),
        ({"mm_projector_type": None}, r"mm_projector_type None, .* \(None means linear"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True: a picture stands between two"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type 'qformer': transformers has no"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls' is neither"),
        ({"mm_vision_select_layer": [-2, -5]}, "mm_vision_select_layer .-2, -5. is not one layer"),
        (
            {"mm_hidden_size": 64},
            "llava: mm_hidden_size 64, and its vision tower is 32 wide\n  fix: add",
        ),
        (
            {"mm_vision_tower": "eva"},
            "mm_vision_tower 'eva' is none of .*\n  fix: add --vision-tower",
        ),
        ({"mm_newline_position": "grid"}, "mm_newline_position 'grid': lines of a video end as in"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode 'average', and .* bilinear"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride 4, and .* by 2 alone"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "its language model is MPT"),
        ({"model_type": "llava_mpt"}, "its language model is MPT"),
        (
            {"architectures": ["LlavaOlmoForCausalLM"]},
            r"its language model, Olmo, .*\(gemma, llama,",
        ),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"hidden_size": "wide"}, "hidden_size 'wide' is no count"),
        (
            {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"},
            "mm_patch_merge_type 'spatial', and transformers has only spatial_unpad",
        ),
        (
            {"image_aspect_ratio": "highres_anyres", "mm_patch_merge_type": "spatial_unpad"},
            "image_aspect_ratio 'highres_anyres' is none of pad, anyres",
        ),
        (
            {
                "image_aspect_ratio": "anyres",
                "mm_patch_merge_type": "spatial_unpad",
                "image_grid_pinpoints": "all",
            },
            "image_grid_pinpoints 'all' is no list of sizes",
        ),
    ],
)
def test_what_transformers_has_no_class_for_is_refused_by_name(llava, more, sentence):
    change(llava, **more)
    assert refused(llava, sentence).fix


def test_what_it_says_of_videos_is_no_obstacle_where_transformers_does_the_same(llava):
    same = {"mm_newline_position": "one_token", "mm_spatial_pool_mode": "bilinear"}
    change(llava, **same, mm_spatial_pool_stride=2)
    run(llava, llava.parent / "out", dry_run=True)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"architectures": 5}, "config.json: architectures 5 is no list of names"),
        ({"architectures": {"a": 1}}, "architectures {'a': 1} is no list"),
        ({"num_attention_heads": "x"}, "llava: config.json: transformers cannot read it"),
        ({"num_attention_heads": 0}, "transformers cannot read it"),
        ({"rope_scaling": "x"}, "transformers cannot read it"),
        ({"rope_theta": "x"}, "rope_theta 'x' is no number"),
        ({"vocab_size": True}, "vocab_size True is no count"),
        ({"tokenizer_model_max_length": "x"}, "tokenizer_model_max_length 'x' is no count"),
    ],
)
def test_a_configuration_of_no_use_is_refused(llava, more, sentence):
    change(llava, **more)
    assert refused(llava, sentence).fix


@pytest.mark.parametrize(
    "name", ["no config", "config cut", "config of bytes", "config a list", "generation cut"]
)
def test_damaged_small_files_are_refused_as_in_any_layout(tmp_path, model, name):
    twist, sentence = HOSTILE[name]
    source = originals.write_original(tmp_path / "llava", model, shards=2)
    twist(source)
    refused(source, sentence)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "image_size", "patch_size", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [0, "x"])
def test_a_tower_of_no_size_is_refused(tmp_path, model, key, value):
    source = originals.write_original(tmp_path / "llava", model, tower=False)
    tower = originals.write_tower(tmp_path / "clip", model)
    config = json.loads((tower / "config.json").read_text())
    config["vision_config"][key] = value
    (tower / "config.json").write_text(json.dumps(config))
    sentence = f"{key} {value!r} is no count|transformers cannot read it"
    refused(source, sentence, **{"convert.vision_tower": str(tower)})


@pytest.mark.parametrize("name", ["LLaVA-7b-delta-v0", "llava_13b_delta"])
def test_a_delta_is_no_model(tmp_path, model, name):
    source = originals.write_original(tmp_path / name, model)
    refused(source, f"{name}: a delta, the difference to LLaMA's weights")
    source.rename(tmp_path / "deltanet")
    run(tmp_path / "deltanet", tmp_path / "out", dry_run=True)


def test_a_tower_of_another_kind_is_refused(llava, tmp_path):
    other = tiny_llava(tmp_path / "other")
    sentence = "--vision-tower other: a model of type llava\n  fix: give the CLIP or SigLIP"
    refused(llava, sentence, **{"convert.vision_tower": str(other)})


def test_a_model_without_vision_weights_asks_for_them(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, tower=False)
    refused(source, "llava: its weights hold no vision tower\n  fix: add --vision-tower SOURCE")


def test_tiles_are_not_padded_once_more(tmp_path):
    source = originals.write_original(tmp_path / "llava", originals.native("next"), "next")
    refused(source, "--image-aspect pad: llava cuts pictures", **{"convert.image_aspect": "pad"})


def test_weights_that_are_written_anew_cannot_be_linked(llava):
    refused(llava, "--link: the weights of llava are in LLaVA's original", **{"convert.link": True})


def test_a_model_without_a_tokenizer_is_refused(llava):
    for file in llava.glob("tokenizer*"):
        file.unlink()
    refused(llava, "no tokenizer that transformers can load\n  fix: copy the language model's")
    (llava / "tokenizer.model").write_bytes(b"no model")
    refused(llava, "no tokenizer that transformers can load\n  fix: copy the language model's")


def test_other_commands_send_an_original_to_convert(llava):
    from victorctl.checkpoint import load

    with pytest.raises(
        VictorError, match=r"LLaVA's original layout, .*\n  fix: victorctl convert "
    ):
        load(llava)


def test_an_original_is_no_base_to_compare_with(llava, tmp_path):
    from victorctl.evaluate import evaluate

    run(llava, tmp_path / "out")
    with pytest.raises(VictorError, match="llava: this is LLaVA's original layout"):
        evaluate(
            tmp_path / "out",
            recipe=load_recipe(flags={"eval.data": "demo:test", "eval.limit": 1}),
            run=Run(base=str(llava), quiet=True, device="cpu"),
        )


@pytest.mark.parametrize("key", ["base", "vision_tower"])
def test_a_model_in_transformers_layout_takes_no_parts(tmp_path, key):
    llava = tiny_llava(tmp_path / "llava")
    word = key.replace("_", "-")
    with pytest.raises(
        VictorError, match=f"--{word} x: llava is whole as it is\n  fix: leave --{word}"
    ):
        run(llava, tmp_path / "out", flags=QUICK | {f"convert.{key}": "x"})


# ---- By the weights ------------------------------------------------------------------------------

PROJECTOR = "model.mm_projector.0.weight"


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        ({PROJECTOR: None}, "no tensor multi_modal_projector.linear_1.weight among the weights"),
        ({PROJECTOR: torch.ones(32, 48)}, "linear_1.weight is 32x48, and config.json says 32x32"),
        ({"model.embed_tokens.weight": torch.ones(96, 32)}, "is 96x32, and config.json says 95x32"),
        (
            {"model.layers.3.mlp.up_proj.weight": None},
            r"layers\.3\.mlp\.up_proj\.weight is missing",
        ),
        ({"model.layers.6.input_layernorm.weight": torch.ones(32)}, r"layers\.6\.\S+ is too many"),
        ({"model.layers.2": torch.ones(1)}, r"tensor model\.layers\.2 has no place"),
        (
            {"model.mm_projector.4.weight": torch.ones(2)},
            "mm_projector.4.weight has no place in Llava",
        ),
        ({"model.image_seperate": torch.ones(2)}, "tensor model.image_seperate has no place"),
        (
            {PROJECTOR: torch.ones(32, 32, dtype=torch.int8)},
            "holds I8, no number format that is kept",
        ),
        ({PROJECTOR: torch.full((32, 32), torch.nan)}, f"tensor {PROJECTOR} holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_the_configurations_are_refused(llava, new, sentence):
    file = llava / "model.safetensors"
    tensors = load_file(file) | new
    save_file({name: one for name, one in tensors.items() if one is not None}, file)
    refused(llava, sentence)


def test_a_head_that_is_lost_is_not_made_of_the_embeddings(llava):
    file = llava / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    refused(llava, r"no tensor language_model\.lm_head\.weight among the weights")


def test_a_tensor_in_two_shards_is_refused(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, shards=2)
    for number in (1, 2):
        file = source / f"model-0000{number}-of-00002.safetensors"
        save_file(load_file(file) | {"model.norm.weight": torch.ones(32)}, file)
    refused(source, r"tensor language_model\.model\.norm\.weight is there twice")


def test_a_header_that_lies_about_a_shape_is_refused(llava):
    file = llava / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["shape"] = [320_000_000]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(llava, r"model\.norm\.weight: \(320000000,\) of F32 in 128 bytes")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../secret.{end}", "lies outside of the folder"),
        ("/etc/secret.{end}", "lies outside of the folder"),
        ("weights.exe", "is no {end} file"),
        ("gone.{end}", r"shard gone\.{end} is missing"),
    ],
)
def test_an_index_leads_nowhere_else(tmp_path, model, pickled, name, sentence):
    source = originals.write_original(tmp_path / "llava", model, shards=2, pickled=pickled)
    end = "bin" if pickled else "safetensors"
    (file,) = source.glob("*.index.json")
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = name.format(end=end)
    file.write_text(json.dumps(index))
    refused(source, sentence.format(end=end))


def test_an_index_that_promises_what_is_not_there_is_refused(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, shards=2, pickled=True)
    (file,) = source.glob("*.index.json")
    index = json.loads(file.read_text())
    index["weight_map"]["model.more"] = "pytorch_model-00001-of-00002.bin"
    file.write_text(json.dumps(index))
    refused(source, "pytorch_model-00001-of-00002.bin does not hold tensor model.more")


class Code:
    """Runs when a pickle of it is opened."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / MARK),)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            lambda folder: {"model.norm.weight": Code(folder)},
            "a pickle that holds more than tensors",
        ),
        (lambda _folder: [torch.ones(1)], "not a table of tensors by name"),
        (lambda _folder: {"model.norm.weight": 1}, "not a table of tensors by name"),
    ],
)
def test_a_pickle_that_is_more_than_tensors_is_never_opened(tmp_path, model, content, sentence):
    source = originals.write_original(tmp_path / "llava", model, pickled=True)
    torch.save(content(tmp_path), source / "pytorch_model.bin")
    refused(source, sentence)
    assert MARK not in left(tmp_path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).as_strided((2**50,), (0,)),  # four petabytes, says its pickle
        torch.eye(3).to_sparse(),
        torch.ones(3, device="meta"),
        torch.zeros(1).expand(2**20),
    ],
    ids=["huge", "sparse", "nowhere", "repeated"],
)
def test_a_tensor_of_a_pickle_is_no_more_than_what_stands_in_it(tmp_path, model, tensor):
    source = originals.write_original(tmp_path / "llava", model, pickled=True)
    state = originals.original_state(model)
    torch.save(state | {"x.inv_freq": tensor}, source / "pytorch_model.bin")
    refused(source, r"tensor x\.inv_freq is not simply numbers that stand in the file")


@pytest.mark.parametrize(
    "part", ["mm_projector.bin", "non_lora_trainables.bin", "adapter_model.bin"]
)
def test_nor_is_one_that_stands_beside_the_weights(tmp_path, model, part):
    base = originals.write_original(tmp_path / "base", model)
    source = tmp_path / "llava"
    originals.write_small(
        source, originals.original_config(model, "llava", _name_or_path=str(base))
    )
    if part != "mm_projector.bin":
        adapter = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
        (source / "adapter_config.json").write_text(json.dumps(adapter))
        torch.save({}, source / "non_lora_trainables.bin")
        torch.save({}, source / "adapter_model.bin")
    torch.save({"x": Code(tmp_path)}, source / part)
    refused(source, f"{part}: a pickle that holds more than tensors")
    assert MARK not in left(tmp_path)


@pytest.mark.parametrize("cut", [0, 8, -80])
def test_a_damaged_pickle_is_refused(tmp_path, model, cut):
    source = originals.write_original(tmp_path / "llava", model, pickled=True)
    file = source / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:cut])
    refused(source, r"pytorch_model\.bin: (truncated, or no file of torch|a pickle that holds)")


def test_a_folder_without_weights_says_so(llava):
    (llava / "model.safetensors").unlink()
    refused(llava, r"no weights, neither \*\.safetensors nor pytorch_model\*\.bin")
