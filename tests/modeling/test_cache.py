"""Keys and values kept in a cache change nothing, whatever is done to the cache.

Faults planted and caught: a mask is read from its left; length counts registers; late layers use
the early mask; masks not reordered with rows; positions not reordered with rows; select leaves
masks; repeat tiles instead of interleaving; crop cuts before it refuses; crop into an image
allowed; crop one token into an image allowed; crop of padding allowed; crop beyond the first token
leaves a negative length; a cache is adopted by copying; an adopted cache gets other layers; the
drop is forgotten in the cache; native turns not recorded; a generated image token is visual; reset
keeps the masks; registers_off caches not told; layers of a window are the first ones; a cache where
none is wanted.
"""

import pytest
import torch
from transformers import DynamicCache

from tests.modeling.laws import assert_close
from tests.victor_models import (
    IMAGE,
    PLAIN,
    each,
    generate,
    ids,
    inputs,
    pictures,
    shared,
    shared_native,
    victor_llava,
)
from victorctl.modeling_victor import CACHE, VictorCache

BACKBONES = ("llama", "qwen2", "mistral", "gemma")
PROMPTS = ("ab#cd", "abc", "#a#bcde", "ab##")  # 1, 0, 2 and 2 adjacent images; the last ends in one
SAMPLED = {**PLAIN, "do_sample": True, "temperature": 2.0}
WAYS = {
    "greedy": PLAIN,
    "beams": {**PLAIN, "num_beams": 3, "num_return_sequences": 2},
    "sampling": SAMPLED,
    "several": {**SAMPLED, "num_return_sequences": 3},
    "sampled beams": {**SAMPLED, "num_beams": 2},
}


@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize(
    ("text", "way"),
    [
        *((text, "greedy") for text in BACKBONES),
        *(("llama", way) for way in WAYS if way != "greedy"),
    ],
)
def test_generating_with_the_cache_is_recomputing_every_token(text, positions, way):
    model, batch = shared(text, positions=positions, adapted=True), inputs(*PROMPTS)

    cached = generate(model, batch, **WAYS[way])
    recomputed = generate(model, batch, **WAYS[way], use_cache=False)

    assert torch.equal(cached.sequences, recomputed.sequences)
    for step, expected in zip(cached.logits, recomputed.logits, strict=True):
        assert_close(step, expected, tolerance=2e-5)


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_prompt_generates_in_a_batch_what_it_generates_alone(way):
    model = shared("llama", adapted=True)

    batched = generate(model, inputs(*PROMPTS), **WAYS[way]).sequences[:, -5:]
    alone = [generate(model, single, **WAYS[way]).sequences[:, -5:] for single in each(*PROMPTS)]

    assert torch.equal(batched, torch.cat(alone))


def test_the_cache_works_under_a_sliding_window():
    model, batch = victor_llava("mistral", window=7), inputs(*PROMPTS)

    cached, recomputed = generate(model, batch), generate(model, batch, use_cache=False)

    assert torch.equal(cached.sequences, recomputed.sequences)


def test_a_generated_image_token_is_text():
    model, batch = shared("llama", adapted=True), inputs("ab#cd")
    forced = {"prefix_allowed_tokens_fn": lambda row, tokens: [IMAGE, IMAGE]}

    cached = generate(model, batch, **forced, suppress_tokens=None)

    assert cached.sequences[0, -5:].tolist() == [IMAGE] * 5
    assert cached.past_key_values.get_seq_length() == 20 + 4
    assert cached.past_key_values.layers[-1].get_seq_length() == 4 + 3 + 4


# ---- Lengths -------------------------------------------------------------------------------------


@torch.no_grad()
def test_early_layers_hold_everything_and_late_layers_no_visual_token():
    # "ab#cd": 4 words + 16 visual tokens; 3 registers. Two further tokens later.
    model = shared("llama")
    output = model(**inputs("ab#cd"), use_cache=True)
    cache = output.past_key_values
    assert [layer.get_seq_length() for layer in cache.layers] == [23, 23, 7, 7, 7, 7]
    assert cache.get_seq_length() == 20

    model(input_ids=torch.tensor([[10, 11]]), past_key_values=cache)

    assert [layer.get_seq_length() for layer in cache.layers] == [25, 25, 9, 9, 9, 9]
    assert cache.get_seq_length() == 22


@torch.no_grad()
def test_a_batch_is_as_long_as_its_longest_row_at_either_stage():
    # Early: 37 columns and room for 2 x 3 registers. Late: "#a#bcde" keeps 5 words and 6 registers.
    cache = shared("llama")(**inputs("abcdefg", "#a#bcde"), use_cache=True).past_key_values

    assert [layer.get_seq_length() for layer in cache.layers] == [43, 43, 11, 11, 11, 11]
    assert cache.get_seq_length() == 37


@torch.no_grad()
def test_without_images_all_layers_are_equally_long():
    cache = shared("llama")(**inputs("abc"), use_cache=True).past_key_values

    assert [layer.get_seq_length() for layer in cache.layers] == [3] * 6
    assert cache.get_seq_length() == 3


@torch.no_grad()
def test_no_cache_is_made_unless_wanted():
    assert shared("llama")(**inputs("a#b"), use_cache=False).past_key_values is None


@torch.no_grad()
def test_an_empty_dynamic_cache_is_filled_in_place():
    model, batch, cache = shared("llama"), inputs("ab#cd"), DynamicCache()
    expected = model(**inputs("ab#cde")).logits[:, -1]

    output = model(**batch, past_key_values=cache)
    step = model(input_ids=torch.tensor([ids("e")]), past_key_values=cache)

    assert output.past_key_values is cache
    assert cache.get_seq_length() == 21
    assert_close(step.logits[:, -1], expected)


@pytest.mark.parametrize("config", [False, True], ids=["without layers", "with layers"])
@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_generate_fills_an_empty_dynamic_cache_in_place(text, config):
    model, batch = shared(text, window=None if text == "llama" else 7), inputs("ab#cd", "e")
    cache = DynamicCache(config=model.config) if config else DynamicCache()

    filled = generate(model, batch, **{CACHE: cache})

    assert filled[CACHE] is cache
    assert torch.equal(filled.sequences, generate(model, batch, use_cache=False).sequences)
    kept = [layer.keys.shape[-2] for layer in cache.layers]  # of 20 + 4, and of 4 + 4; 3 registers
    windows = {"llama": [], "mistral": range(6), "qwen2": [1, 3, 5]}[text] if config else []
    assert kept == [6 if place in windows else (27, 11)[place > 1] for place in range(6)]


@torch.no_grad()
def test_a_reset_cache_is_as_good_as_new():
    model, batch = shared("llama"), inputs("ab#cd")
    first = model(**batch, use_cache=True)
    first.past_key_values.reset()
    assert first.past_key_values.get_seq_length() == 0

    again = model(**batch, past_key_values=first.past_key_values)

    assert torch.equal(again.logits, first.logits)


# ---- Cropping and rows ---------------------------------------------------------------------------


@torch.no_grad()
def test_a_cache_is_never_cropped_into_an_image_and_a_refusal_leaves_it_whole():
    model, batch = shared("llama"), inputs("ab#cd", "ef#gh")
    cache = model(**batch, use_cache=True).past_key_values
    lengths = [layer.get_seq_length() for layer in cache.layers]

    with pytest.raises(ValueError, match=r"crop\(-3\) reaches into an image.*token 18 of 20"):
        cache.crop(-3)

    assert [layer.get_seq_length() for layer in cache.layers] == lengths
    cache.crop(-2)
    step = model(input_ids=torch.tensor([ids("c"), ids("g")]), past_key_values=cache).logits
    assert_close(step[:, 0], model(**batch).logits[:, 18])


@torch.no_grad()
def test_a_cache_padded_on_the_right_is_not_cropped_where_rows_would_lose_different_tokens():
    # The last column is padding in row 0. Late layers hold none of it and would lose "c" there.
    cache = shared("llama")(**inputs("abc", "#ab", side="right"), use_cache=True).past_key_values

    with pytest.raises(ValueError, match=r"crop\(-1\) meets padding.*\n  fix: pad on the left"):
        cache.crop(-1)

    assert [layer.get_seq_length() for layer in cache.layers] == [21, 21, 5, 5, 5, 5]


@pytest.mark.parametrize("count", [3, 100])
@torch.no_grad()
def test_a_cache_of_text_can_be_cropped_to_nothing_and_begin_again(count):
    model = shared("llama", adapted=True)
    cache = model(**inputs("abc"), use_cache=True).past_key_values

    cache.crop(-count)

    assert cache.get_seq_length() == 0
    again = model(**inputs("d#e"), past_key_values=cache)
    assert torch.equal(again.logits, model(**inputs("d#e")).logits)


@torch.no_grad()
def test_cropping_nothing_does_nothing():
    cache = shared("llama")(**inputs("ab#cd"), use_cache=True).past_key_values

    cache.crop(0)

    assert cache.get_seq_length() == 20
    assert cache.layers[0].get_seq_length() == 23


def reorder(cache, rows):
    cache.reorder_cache(torch.tensor(rows))


def select(cache, rows):
    cache.batch_select_indices(torch.tensor(rows))


def repeat(cache, rows):
    cache.batch_repeat_interleave(2)


@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize(
    ("change", "rows"),
    [(reorder, [2, 0, 0]), (select, [2, 0]), (repeat, [0, 0, 1, 1, 2, 2])],
)
@torch.no_grad()
def test_rows_keep_their_own_past(positions, change, rows):
    model, batch = shared("llama", positions=positions, adapted=True), inputs("ab#cd", "e", "##f")
    words = torch.tensor([[10 + row] for row in rows])  # each row goes on with another word
    cache = model(**batch, use_cache=True).past_key_values

    change(cache, rows)
    step = model(input_ids=words, past_key_values=cache).logits[:, -1]

    prompts = [("ab#cd", "e", "##f")[row] + chr(10 + row + 87) for row in rows]
    firsts = [(0, 1, 1)[row] for row in rows]
    for logits, prompt, first in zip(step, prompts, firsts, strict=True):
        assert_close(logits, model(**inputs(prompt, first=first)).logits[0, -1])


@torch.no_grad()
def test_a_cache_padded_on_the_right_goes_on():
    model = shared("llama", adapted=True)
    cache = model(**inputs("abc", "#ab", side="right"), use_cache=True).past_key_values

    step = model(input_ids=torch.tensor([ids("d"), ids("c")]), past_key_values=cache).logits

    for row, prompt in enumerate(("abcd", "#abc")):
        assert_close(step[row, -1], model(**inputs(prompt)).logits[0, -1])


@pytest.mark.parametrize("positions", ["overlay", "append"])
@torch.no_grad()
def test_registers_off_concerns_the_images_that_arrive_and_the_cache_remembers(positions):
    model, native = shared("llama", positions=positions, adapted=True), shared_native(text="llama")
    more = {"input_ids": torch.tensor([ids("#e")]), "pixel_values": pictures(1, first=1)}
    expected = native(**inputs("ab#c#ef")).logits[:, -1]
    with model.registers_off():
        cache = model(**inputs("ab#c"), use_cache=True).past_key_values
        model(**more, past_key_values=cache)

    on_again = model(input_ids=torch.tensor([ids("f")]), past_key_values=cache).logits

    assert_close(on_again[:, -1], expected)
    assert cache.get_seq_length() == 37

    dropped = model(**inputs("ab#c"), use_cache=True).past_key_values
    with model.registers_off():
        text = model(input_ids=torch.tensor([ids("d")]), past_key_values=dropped).logits
    assert_close(text[:, -1], model(**inputs("ab#cd")).logits[:, -1])


@torch.no_grad()
def test_a_filled_foreign_cache_serves_text():
    native, model = shared_native(text="llama"), shared("llama")
    cache = native(**inputs("abc"), use_cache=True).past_key_values
    assert type(cache) is DynamicCache

    step = model(input_ids=torch.tensor([ids("d")]), past_key_values=cache).logits

    assert_close(step[:, -1], native(**inputs("abcd")).logits[:, -1])


def test_a_cache_of_ours_is_a_dynamic_cache():
    assert isinstance(generate(shared("llama"), inputs("a#")).past_key_values, VictorCache)
    assert issubclass(VictorCache, DynamicCache)
