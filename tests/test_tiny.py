"""The stand-in models that other tests rely on."""

import json

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.tiny import VISUAL_TOKENS, tiny_llava, tiny_picture


def load(folder):
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval(), AutoProcessor.from_pretrained(folder)


def last_logits(model, processor, text, picture):
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == VISUAL_TOKENS
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


@pytest.mark.parametrize("text", ["llama", "qwen2", "mistral", "gemma"])
def test_loads_completely_and_depends_on_the_picture_and_on_the_order_of_words(tmp_path, text):
    model, processor = load(tiny_llava(tmp_path / "model", text=text))

    plain = last_logits(model, processor, "<image> what is this ? red cat", tiny_picture(0))
    other_picture = last_logits(model, processor, "<image> what is this ? red cat", tiny_picture(1))
    other_order = last_logits(model, processor, "<image> this ? is what red cat", tiny_picture(0))

    assert (plain - other_picture).abs().mean() > 0.2 * plain.std()
    assert (plain - other_order).abs().mean() > 0.2 * plain.std()


def test_same_arguments_give_the_same_bytes_and_the_random_state_stays(tmp_path):
    state = torch.random.get_rng_state()
    folders = {name: tiny_llava(tmp_path / name, seed=len(name)) for name in ("a", "b", "other")}
    first, again, other = [(path / "model.safetensors").read_bytes() for path in folders.values()]

    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_several_shards_hold_the_same_weights_as_one_file(tmp_path):
    one, _ = load(tiny_llava(tmp_path / "one"))
    folder = tiny_llava(tmp_path / "many", max_shard_size="100KB")
    many, _ = load(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())

    assert len(set(index["weight_map"].values())) == len(list(folder.glob("*.safetensors"))) >= 3
    assert not (folder / "model.safetensors").exists()
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, many.get_parameter(name)), name
