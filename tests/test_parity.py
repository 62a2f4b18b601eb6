import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel

from tests.backbones import SETTINGS
from tests.tiny import VISUAL_TOKENS, tiny_llava, tiny_model
from victorctl import parity
from victorctl.checkpoint import read_config
from victorctl.errors import CheckFailed, VictorError
from victorctl.families import BACKBONES, FAMILIES
from victorctl.features import noise

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def text_model(kind, **more):
    """Make a text model with weights in which every part matters."""
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**SIZES, **more)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def native(folder, **given):
    family, cpu = FAMILIES[0], torch.device("cpu")
    options = {"dtype": "auto", "device": cpu, "attn": "sdpa"} | given
    return parity.native_model(folder, family, **options)


@pytest.mark.parametrize("kind", SETTINGS)
def test_text_models_said_to_be_tested_run_in_slices(kind):
    model = text_model(kind, **SETTINGS[kind])
    before = type(model)
    with torch.inference_mode():
        parity.check_slices(model, 2)
    assert type(model) is before


NAMES, SAYS = "its layers or its last norm have other names", "compute something else"
STATE = "not every layer keeps keys and values of its own"
MULTIPLIED = {"embedding_multiplier": 12.0}


SHARED = {
    **{"num_kv_shared_layers": 2, "layer_types": ["full_attention"] * 6},
    **{"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
}
REFUSED = (
    ("granite", MULTIPLIED, "GraniteModel", SAYS),
    ("granite", {**MULTIPLIED, "dtype": torch.bfloat16}, "GraniteModel", SAYS),
    ("granite", {"embedding_multiplier": 1.05, "dtype": torch.float16}, "GraniteModel", SAYS),
    ("granitemoe", {**MULTIPLIED, "num_local_experts": 2}, "GraniteMoeModel", SAYS),
    ("nanochat", {}, "NanoChatModel", SAYS),
    ("gpt_neox", {}, "GPTNeoXModel", NAMES),
    ("phi", {}, "PhiModel", NAMES),
    ("persimmon", {}, "PersimmonModel", NAMES),
    ("lfm2", {}, "Lfm2Model", NAMES),
    ("jamba", {}, "JambaModel", NAMES),
    ("recurrent_gemma", {}, "RecurrentGemmaModel", NAMES),
    ("gpt2", {}, "GPT2Model", NAMES),
    ("qwen3_next", {"num_experts": 2}, "Qwen3NextModel", STATE),
    ("gemma3n_text", {**SHARED, "laurel_rank": 4}, "Gemma3nTextModel", STATE),
    ("gemma4_text", SHARED, "Gemma4TextModel", STATE),
)


@pytest.mark.parametrize(("kind", "more", "name", "why"), REFUSED)
def test_text_models_that_do_not_run_in_slices_are_refused_by_name(kind, more, name, why):
    with (
        torch.inference_mode(),
        pytest.raises(VictorError, match=f"the text model {name} cannot be run in slices.*{why}"),
    ):
        parity.check_slices(text_model(kind, **more), 2)


def test_every_text_model_that_the_table_refuses_is_among_them():
    tried = {kind for kind, *_ in REFUSED} - {"gpt2"}  # which no table names

    assert tried == {known.model_type for known in BACKBONES if known.refused}


def test_damaged_weights_are_not_mistaken_for_a_text_model_that_cannot_be_cut():
    model = text_model("llama")
    model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    with torch.inference_mode():
        parity.check_slices(model, 2)  # copying the file names the tensor


def test_a_probe_holds_one_picture_between_words_that_are_no_placeholders():
    model = tiny_model()
    with torch.inference_mode():
        inputs = parity.probe(model, noise(model))
    (ids,) = inputs["input_ids"].tolist()
    image = model.config.image_token_id
    assert ids[4:20] == [image] * VISUAL_TOKENS
    assert image not in ids[:4] + ids[20:]
    assert len(ids) == 24 + VISUAL_TOKENS
    assert len(set(ids[:4] + ids[20:])) > 10
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)


def test_pictures_are_processed_as_the_model_expects(tmp_path):
    pixels = parity.pictures(tiny_llava(tmp_path / "llava"), 3)["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32)
    assert not torch.equal(pixels[0], pixels[1])
    assert pixels.min() < -1 < 1 < pixels.max()  # normalised, not 0 to 255


def test_the_unconverted_model_is_loaded_in_eval_mode_and_quietly(tmp_path, capfd):
    folder = tiny_llava(tmp_path / "llava")
    capfd.readouterr()
    with native(folder) as model:
        assert type(model).__name__ == "LlavaForConditionalGeneration"
        assert not model.training
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("transformers").level == logging.WARNING


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("take", r"1 missing tensors, such as \S*norm\.weight"),
        ("add", "1 unexpected tensors, such as extra"),
        ("reshape", "1 mismatched tensors, such as .*norm"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(tmp_path, change, sentence):
    folder = tiny_llava(tmp_path / "llava")
    tensors, name = load_file(folder / "model.safetensors"), "language_model.model.norm.weight"
    if change == "take":
        del tensors[name]
    else:
        tensors["extra" if change == "add" else name] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(VictorError, match=rf"llava: {sentence}"), native(folder):
        pass


def test_the_dtype_can_be_chosen(tmp_path):
    folder = tiny_llava(tmp_path / "llava")
    with native(folder, dtype=torch.bfloat16) as model:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text()) == read_config(folder)


def test_logits_must_be_equal_bit_for_bit():
    expected = torch.tensor([1.0, torch.nan, 3.0])
    assert parity.check_equal(expected, expected.clone(), "the copy") == 0.0
    found = torch.nextafter(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(9.0))
    with pytest.raises(CheckFailed, match=r"logits of the copy differ from the source's by 2\.38"):
        parity.check_equal(torch.tensor([1.0, 2.0, 3.0]), found, "the copy")


def test_hashes_must_be_equal():
    assert parity.check_hashes({"a": "1"}, {"a": "1", "b": "2"})
    with pytest.raises(
        CheckFailed, match=r"b: what was written is not what was read\n  fix: check"
    ):
        parity.check_hashes({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
