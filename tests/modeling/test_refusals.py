"""What a Victor model cannot do it refuses, with the value and the way out.

Faults planted and caught: each refusal taken out (overlay of too few tokens, truncated images, drop
layers 0 and n, packed sequences, gaps under append, four-dimensional masks, offloaded, filled and
static caches adopted, embeddings alone, unconverted folders, flash attention); four-dimensional
masks refused too late; chunks that cut an image, counted from the first token of an older turn;
new tokens alone taken for all of them; images in one chunk taken for one; every image read in the
first chunk; chunks that end where images meet refused; chunks of the unconverted model refused;
the mask of all chunks given to each; any cache adopted.
"""

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from tests.tiny import tiny_llava
from tests.victor_models import IMAGE, inputs, pictures, shared, shared_native, victor_llava
from victorctl.modeling_victor import CACHE, VictorLlava


def refused(match):
    return pytest.raises(ValueError, match=rf"(?s){match}")


def filled_foreign(config):
    return shared_native(text="llama")(**inputs("abc"), use_cache=True).past_key_values


def offloaded(config):
    cache = DynamicCache()
    cache.offloading = True  # as DynamicCache(offloading=True), which needs an accelerator
    return cache


CACHES = {
    "DynamicCache, 3 tokens": filled_foreign,
    "offloaded DynamicCache, 0 tokens": offloaded,
    "StaticCache, 0 tokens": lambda config: StaticCache(config, max_cache_len=64),
    "QuantizedCache, 0 tokens": lambda config: QuantizedCache("fp8", config),
    "EncoderDecoderCache, 0 tokens": lambda config: EncoderDecoderCache(*[DynamicCache()] * 2),
}


@pytest.mark.parametrize("described", CACHES)
@torch.no_grad()
def test_an_image_does_not_enter_a_cache_with_one_length_for_all_layers(described):
    model = shared("llama")
    cache = CACHES[described](model.config)

    with refused(f"cannot put an image into this cache: {described}.*pass no cache_implementation"):
        model(**inputs("a#b"), past_key_values=cache)


def chunked(prompts, positions="overlay", **how):
    how = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [2, IMAGE]} | how
    model = shared("llama", positions=positions, adapted=True)
    return model.generate(**inputs(*prompts), **how)


@pytest.mark.parametrize(
    ("prompts", "size"),
    [
        (["ab#cd"], 2),  # the image stands at 2 to 17
        (["ab#cd"], 5),
        (["ab#cd"], 17),
        (["##ab"], 8),  # 0 to 15 and 16 to 31
        (["##ab"], 24),  # as many placeholders in the first chunk as in an image and a half
        (["a#bcd", "##"], 17),  # 13 to 28 after padding; 0 to 15 and 16 to 31
    ],
)
def test_a_prompt_is_not_read_in_chunks_that_cut_an_image(prompts, size):
    with refused(f"prefill_chunk_size {size} cuts an image.*fix: leave prefill_chunk_size out"):
        chunked(prompts, prefill_chunk_size=size)


@pytest.mark.parametrize(
    ("prompts", "size"),
    [
        (["ab#cd", "abcde"], 18),  # the first chunk ends with the image
        (["ab#cd", "abcde"], 40),
        (["##ab"], 16),  # chunks end where images meet
        (["##ab"], 32),  # two images in a chunk
        (["a#b#c"], 17),
        (["a#b#c"], 34),
        (["a#b", "c#d", "#ef"], 17),  # an image of each row in a chunk
        (["#a##bcd", "ab#"], 33),
    ],
)
@pytest.mark.parametrize("positions", ["overlay", "append"])
def test_a_prompt_is_read_in_chunks_that_leave_images_whole(prompts, size, positions):
    expected = chunked(prompts, positions, use_cache=False)

    assert torch.equal(chunked(prompts, positions, prefill_chunk_size=size), expected)


def test_the_unconverted_model_reads_in_chunks_of_any_size():
    model, batch = shared("llama", adapted=True), inputs("ab#cd")
    how = {"max_new_tokens": 3, "do_sample": False, "prefill_chunk_size": 5}

    with model.registers_off():
        ours = model.generate(**batch, **how)

    assert torch.equal(ours, shared_native(text="llama").generate(**batch, **how))


@pytest.mark.parametrize("alone", [False, True], ids=["after the old", "alone"])
def test_only_what_is_new_must_not_be_cut(alone):
    # After "ab#c" 19 tokens are known: of "ab#cd#e" only "d#e" is read, its image at 1 to 16.
    model = shared("llama", adapted=True)
    how = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [2, IMAGE]}
    second = inputs("ab#cd#e")
    second["pixel_values"] = second["pixel_values"][1:]
    if alone:
        second["input_ids"] = second["input_ids"][:, 19:]

    def answer(**more):
        with torch.no_grad():
            cache = model(**inputs("ab#c"), use_cache=True).past_key_values
        return model.generate(**second, **{CACHE: cache}, **how, **more)

    assert torch.equal(answer(prefill_chunk_size=17), answer())
    with refused("prefill_chunk_size 16 cuts an image"):
        answer(prefill_chunk_size=16)


IMPLEMENTATIONS = {
    "StaticCache": {"cache_implementation": "static", "disable_compile": True},
    "QuantizedCache": {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "fp8"},  # the others need more than transformers
    },
}


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_generate_refuses_other_kinds_of_cache_for_an_image(kind):
    with refused(f"{kind}, 0 tokens.*fix: pass no cache_implementation"):
        shared("llama").generate(**inputs("a#b"), max_new_tokens=2, **IMPLEMENTATIONS[kind])


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_generate_takes_other_kinds_of_cache_for_text(kind):
    how = {"max_new_tokens": 3, "do_sample": False, **IMPLEMENTATIONS[kind]}

    ours = shared("llama").generate(**inputs("abc"), **how)

    assert torch.equal(ours, shared_native(text="llama").generate(**inputs("abc"), **how))


@torch.no_grad()
def test_embeddings_instead_of_tokens_are_refused():
    with refused("cannot find the images in inputs_embeds.*fix: pass input_ids"):
        shared("llama")(inputs_embeds=torch.zeros(1, 3, 32))
    with refused("cannot find the images in inputs_embeds.*fix: pass input_ids"):
        shared("llama").generate(inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=2)


@pytest.mark.parametrize("positions", ["overlay", "append"])
@torch.no_grad()
def test_packed_sequences_are_refused(positions):
    batch = inputs("ab#cd")
    del batch["attention_mask"]
    starts_again = torch.tensor([[*range(18), 0, 1]])

    with refused("packed sequences.*fix: pad instead"):
        shared("llama", positions=positions)(**batch, position_ids=starts_again)


@torch.no_grad()
def test_positions_with_a_gap_are_refused_under_append_and_kept_under_overlay():
    batch, gap = inputs("ab#cd"), torch.tensor([[*range(18), 28, 29]])

    with refused("have gaps.*fix: leave position_ids out"):
        shared("llama", positions="append")(**batch, position_ids=gap)

    overlay = shared("llama")
    assert overlay(**batch, position_ids=gap).logits.isfinite().all()
    plain = torch.arange(20)[None]
    assert torch.equal(overlay(**batch, position_ids=plain).logits, overlay(**batch).logits)


@pytest.mark.parametrize("prompt", ["abc", "a#b"])
@torch.no_grad()
def test_a_mask_of_four_dimensions_is_refused_before_anything_is_cached(prompt):
    batch, cache = inputs(prompt), DynamicCache(config=shared("llama").config)
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(1, 1, length, length).tril().bool()

    with refused("mask of two dimensions, got 4.*fix: pass the processor's"):
        shared("llama")(**batch, past_key_values=cache)

    assert cache.layers[0].get_seq_length() == 0


def test_flash_attention_is_refused():
    # At batch size 1 it takes the gap that dropped tokens leave in the positions for another text.
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        victor_llava().set_attn_implementation("flash_attention_2")


@torch.no_grad()
def test_overlay_needs_as_many_visual_tokens_as_registers():
    with refused("17 registers cannot overlay an image of 16 visual tokens.*fix: .*append"):
        victor_llava(registers=17)(**inputs("a#b"))


@pytest.mark.parametrize(("count", "features"), [(1, 16), (3, 48)])
@torch.no_grad()
def test_pictures_and_places_for_them_must_agree(count, features):
    batch = {**inputs("a#b#"), "pixel_values": pictures(count)}

    with refused(f"{features} features for 32 image tokens.*fix: one <image>"):
        shared("llama")(**batch)


@torch.no_grad()
def test_an_image_cut_by_truncation_is_refused():
    batch = inputs("a#b")
    cut = {name: batch[name][:, :10] for name in ("input_ids", "attention_mask")}

    with refused("16 features for 9 image tokens"):
        shared("llama")(**cut, pixel_values=batch["pixel_values"])


@pytest.mark.parametrize("drop_layer", [0, 6])
def test_a_drop_layer_outside_the_model_is_refused(drop_layer):
    with refused(f"drop_layer is {drop_layer}, .* has 6 layers.*fix: choose 1 to 5"):
        victor_llava(drop_layer=drop_layer)


def test_a_configuration_that_was_not_converted_is_refused():
    with refused("no `victor` section.*fix: victorctl convert"):
        VictorLlava(copy.deepcopy(shared_native(text="llama").config))


def test_a_folder_that_was_not_converted_is_refused(tmp_path):
    folder = tiny_llava(tmp_path)

    with refused("no `victor` section.*fix: victorctl convert"):
        VictorLlava.from_pretrained(folder)
