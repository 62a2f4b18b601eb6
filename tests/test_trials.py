"""Prompts of noise are what any model takes, and all of one shape."""

import pytest
import torch

from tests.families import tiny_family
from tests.tiny import VISUAL_TOKENS
from tests.victor_models import IMAGE, shared
from victorctl.trials import cached_bytes, generate, prefill, trial


@pytest.mark.parametrize(("text", "before"), [(10, 5), (7, 3), (1, 0)])
def test_a_prompt_is_text_with_a_picture_in_its_middle(text, before):
    made = trial(shared(), 3, text, None, 0)

    assert (made.visual, made.text, list(made.rows)) == (VISUAL_TOKENS, text, [0, 1, 2])
    assert made.ids.shape == (3, VISUAL_TOKENS + text)
    where = (made.ids == IMAGE).nonzero()[:, 1].view(3, -1)
    assert where.tolist() == [list(range(before, before + VISUAL_TOKENS))] * 3
    words = made.ids[:, ~made.shown]
    assert ((words != 0) & (words != IMAGE)).all()  # 0 ends what is generated
    assert len({tuple(row) for row in made.ids.tolist()}) == 3 or text == 1


def test_equal_seeds_give_equal_prompts():
    first, again, other = (trial(shared(), 2, 20, None, seed).ids for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_features_are_those_of_the_pixels():
    model, made = shared(), trial(shared(), 2, 6, None, 0)
    with torch.inference_mode():
        expected = model(**made.unseen()).logits[:, -1:]
    assert torch.allclose(prefill(model, made).logits, expected, atol=1e-4)  # one position alone


def test_without_pictures_text_is_left():
    made = trial(shared(), 2, 6, None, 0)
    bare = made.without_pictures()

    assert (bare.visual, bare.text) == (0, 6)
    assert torch.equal(bare.ids, made.ids[:, [0, 1, 2, -3, -2, -1]])
    assert set(bare.unseen()) == set(bare.seen()) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("family", "picture", "visual"),
    [
        ("llava_next", (60, 60), 88),  # four tiles and the whole, of 16, and the ends of 8 rows
        ("llava_next", (30, 60), 52),  # two tiles and the whole, and the ends of 4 rows
        ("mistral3", (60, 60), 4),  # its tower is shown its own size, whatever the picture's
    ],
)
def test_a_pictures_size_counts_where_a_family_cuts_pictures_into_tiles(family, picture, visual):
    assert trial(tiny_family(family), 2, 6, picture, 0).visual == visual


@pytest.mark.parametrize("length", [1, 5])
def test_answers_are_exactly_as_long_as_was_asked_for(length):
    model, made = shared(), trial(shared(), 2, 6, None, 0)
    ends = model.generation_config.eos_token_id
    assert generate(model, made, length).shape == (2, length)
    assert model.generation_config.eos_token_id == ends


def test_a_cache_is_measured_by_its_tensors():
    output = prefill(shared(), trial(shared(), 2, 6, None, 0))
    # Registers 3, k = 2 of 6: 25 tokens in two layers, 9 in four; 2 heads of 8, keys and values.
    assert cached_bytes(output) == 2 * (2 * 25 + 4 * 9) * 2 * 8 * 2 * 4
