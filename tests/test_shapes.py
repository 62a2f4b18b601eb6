"""The model that speed is measured on has LLaVA-1.5's proportions."""

import torch
from transformers import LlavaForConditionalGeneration

from victorctl import cost
from victorctl.data.batches import IGNORED
from victorctl.shapes import IMAGE, Shape, draw


def parts(config):
    """Count parameters of tower, projector, language model and its two vocabularies."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    inner = model.model
    vocabulary = [model.lm_head.weight, inner.language_model.embed_tokens.weight]
    layers = [*inner.language_model.layers.parameters()]
    groups = [
        [*inner.vision_tower.parameters()],
        [*inner.multi_modal_projector.parameters()],
        layers,
        vocabulary,
    ]
    return [sum(value.numel() for value in group) for group in groups]


def test_in_its_own_sizes_it_is_llava_1_5():
    config = Shape(32, 4096).config(registers=8)
    text, tower = config.text_config, config.vision_config

    # numbers of llava-hf/llava-1.5-7b-hf
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert (text.num_attention_heads, text.head_dim, text.vocab_size) == (32, 128, 32064)
    assert (tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers) == (1024, 4096, 24)
    assert (tower.num_attention_heads, tower.image_size, tower.patch_size) == (16, 336, 14)
    assert config.victor == {"registers": 8, "drop_layer": 3, "positions": "overlay"}
    assert config.image_seq_length == cost.shape_of(config).projected == 576


def test_an_eighth_as_wide_every_part_has_a_sixtyfourth_of_the_parameters():
    for whole, narrow in zip(
        parts(Shape(32, 4096).config(8)), parts(Shape(32, 512).config(8)), strict=True
    ):
        assert 0.95 < 64 * narrow / whole < 1.2  # what goes with the width itself is not squared


def test_fewer_layers_are_fewer_in_tower_and_text_and_the_drop_moves_with_them():
    found = [
        (
            config.text_config.num_hidden_layers,
            config.vision_config.num_hidden_layers,
            config.victor["drop_layer"],
        )
        for config in (Shape(layers, 64).config(8) for layers in (64, 32, 8, 3))
    ]
    assert found == [(64, 48, 6), (32, 24, 3), (8, 6, 2), (3, 2, 2)]


def test_questions_have_their_text_on_both_sides_of_the_picture_and_end_in_an_answer():
    config = Shape(4, 32).config(8)
    batch = draw(config, rows=2, questions=3, before=20)

    assert batch.images["pixel_values"].shape == (2, 3, 336, 336)
    assert batch.prefix.shape == (2, 20 + 576)
    assert ((batch.prefix == IMAGE).sum(dim=1) == 576).all()
    assert (batch.prefix[:, :20] > IMAGE).all()
    assert batch.suffix.shape == (6, 44)
    assert (batch.suffix > IMAGE).all()
    assert batch.row.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.counts == [8] * 6
    assert (batch.labels[:, :36] == IGNORED).all()
    assert torch.equal(batch.labels[:, 36:], batch.suffix[:, 36:])
    assert len(set(batch.keys)) == 6


def test_the_shape_says_how_it_was_scaled():
    said = Shape(8, 512).said()
    assert "512/4096 of its widths" in said
    assert "8 of 32 layers" in said
