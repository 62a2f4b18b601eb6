"""Models that speed is measured on have the proportions of published ones."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from tests.estimate_pages import PUBLISHED
from victorctl import cost
from victorctl.data.batches import IGNORED
from victorctl.sections import Shape as ShapeName
from victorctl.shapes import IMAGE, SIZES, Shape, draw


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


@pytest.mark.parametrize(
    ("name", "published", "drop_layer"),
    [
        ("llava-1.5-7b", "llava-1.5-7b-hf", 3),
        ("llava-1.5-13b", "llava-1.5-13b-hf", 4),
        ("llava-v1.6-mistral-7b", "llava-v1.6-mistral-7b-hf", 3),
        ("llava-onevision-qwen2-7b", "llava-onevision-qwen2-7b-ov-hf", 3),
    ],
)
def test_in_its_own_sizes_a_shape_is_the_published_model(name, published, drop_layer):
    shape = Shape.scaled(name, None, 1.0)
    config = shape.config(8)
    wanted = AutoConfig.from_pretrained(PUBLISHED / published)

    own, other = (replace(cost.shape_of(each), value_bytes=2) for each in (config, wanted))
    assert own == other
    for part in ("image_size", "patch_size", "num_attention_heads"):
        assert getattr(config.vision_config, part) == getattr(wanted.vision_config, part)
    grids = [getattr(each, "image_grid_pinpoints", None) for each in (config, wanted)]
    assert grids[0] == grids[1]
    assert (config.victor["registers"], config.victor["drop_layer"]) == (8, drop_layer)
    assert shape.proportional_drop_layer() == drop_layer


def test_every_shape_that_a_recipe_can_name_has_sizes():
    assert list(SIZES) == list(get_args(ShapeName))


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


@pytest.mark.parametrize(
    ("layers", "drop_layer", "bound"),
    [(32, 3, 5.08), (16, 2, 4.44), (8, 1, 4.44), (3, 1, 2.42)],  # 3 of 32 layers, rounded
)
def test_the_layers_that_see_visual_tokens_shrink_in_proportion(layers, drop_layer, bound):
    shape = Shape(layers, 64)
    assert shape.proportional_drop_layer() == drop_layer
    # Tokens in all layers of the base over those of Victor: (576 + 64) n over 648 k + 72 (n - k).
    assert 640 * layers / (648 * drop_layer + 72 * (layers - drop_layer)) == pytest.approx(
        bound, abs=0.005
    )


def test_keys_stay_as_many_for_each_query_and_heads_as_wide():
    quarter = Shape.scaled("llava-v1.6-mistral-7b", 8, 0.25).config(8).text_config
    narrow = Shape.scaled("llava-onevision-qwen2-7b", 8, 0.01).config(8).text_config

    # Mistral: 32 heads of 128 with 8 of keys; a quarter of each.
    assert (quarter.hidden_size, quarter.intermediate_size) == (1024, 3584)
    assert (quarter.num_attention_heads, quarter.num_key_value_heads, quarter.head_dim) == (
        8,
        2,
        128,
    )
    # Qwen2: 28 heads with 4 of keys; one of keys at least, and as wide as its seven heads divide.
    assert (narrow.hidden_size, narrow.num_attention_heads, narrow.num_key_value_heads) == (
        224,
        7,
        1,
    )
    assert narrow.head_dim == 32


def test_the_shape_says_how_it_was_scaled():
    said = Shape(8, 512).said()
    assert "LLaVA-1.5-7B's proportions" in said
    assert "512/4096 of its widths" in said
    assert "8 of 32 layers" in said


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("scale", [0.01, 0.1, 0.3, 0.37, 0.5, 1.0])
def test_heads_divide_every_width(name, scale):
    shape = Shape.scaled(name, 3, scale)

    text = shape.config(4).get_text_config()

    assert text.hidden_size == text.num_attention_heads * text.head_dim == shape.width
    assert text.num_attention_heads % text.num_key_value_heads == 0
    assert shape.width == pytest.approx(scale * SIZES[name].width, rel=0.5) or scale == 0.01
