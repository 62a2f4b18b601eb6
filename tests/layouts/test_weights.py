"""Weights that are not whole, or would do harm, are refused: nothing is run or written."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import originals
from tests.converting import left, refused

MARK = "ran.txt"


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
    refused(source, "tensor model.norm.weight is in model-.*, and the index says model-")


def test_a_tensor_under_two_names_is_refused(llava):
    file = llava / "model.safetensors"
    state = load_file(file)
    (name,) = (name for name in state if name.endswith("vision_model.post_layernorm.weight"))
    save_file(state | {name.replace("vision_model.", ""): torch.ones(32)}, file)
    refused(llava, r"tensor .*post_layernorm\.weight is there twice")


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
    refused(source, "llava: 1 tensors are in no shard, such as model.more")


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, shards=2)
    (file,) = source.glob("*.index.json")
    index = json.loads(file.read_text())
    shard = index["weight_map"].pop("model.norm.weight")
    file.write_text(json.dumps(index))
    refused(source, f"tensor model.norm.weight is in {shard}, and the index says None")


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
        halves = {
            f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight": torch.ones(shape)
            for side, shape in (("A", (2, 32)), ("B", (64, 2)))
        }
        torch.save(halves, source / "adapter_model.bin")
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


def test_numbers_of_a_pickle_that_were_damaged_are_not_written(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, pickled=True)
    file = source / "pytorch_model.bin"
    data = bytearray(file.read_bytes())
    numbers = originals.original_state(model)["lm_head.weight"].numpy().tobytes()
    data[data.index(numbers)] ^= 1
    file.write_bytes(data)
    refused(source, "pytorch_model.bin: damaged in pytorch_model/data/")
