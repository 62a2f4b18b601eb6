"""What a Victor model cannot do it refuses, with the value and the way out.

Faults planted and caught: each refusal taken out (overlay of too few tokens, truncated images, drop
layers 0 and n, packed sequences, gaps under append, four-dimensional masks, offloaded, filled and
static caches adopted, embeddings alone, unconverted folders, flash attention); four-dimensional
masks refused too late; chunks that cut an image, counted from the first token of an older turn.
"""

import copy

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache

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
    "a DynamicCache that holds 3 tokens": filled_foreign,
    "an offloaded DynamicCache that holds 0 tokens": offloaded,
    "a StaticCache that holds 0 tokens": lambda config: StaticCache(config, max_cache_len=64),
    "a QuantizedCache that holds 0 tokens": lambda config: QuantizedCache("fp8", config),
}


@pytest.mark.parametrize("described", CACHES)
@torch.no_grad()
def test_an_image_does_not_enter_a_cache_with_one_length_for_all_layers(described):
    model = shared("llama")
    cache = CACHES[described](model.config)

    with refused(f"cannot put an image into this cache: {described}.*pass no cache_implementation"):
        model(**inputs("a#b"), past_key_values=cache)


def chunked(prompt, **how):
    how = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [2, IMAGE]} | how
    return shared("llama", adapted=True).generate(**inputs(*prompt), **how)


@pytest.mark.parametrize("size", [2, 5, 17])  # of "ab#cd", whose image stands at 2 to 17
def test_a_prompt_is_not_read_in_chunks_that_cut_an_image(size):
    with refused(f"prefill_chunk_size {size} cuts an image.*fix: leave prefill_chunk_size out"):
        chunked(["ab#cd"], prefill_chunk_size=size)


@pytest.mark.parametrize("size", [18, 19, 40])
def test_a_prompt_is_read_in_chunks_that_leave_images_whole(size):
    prompts = ["ab#cd", "abcde"]

    assert torch.equal(chunked(prompts, prefill_chunk_size=size), chunked(prompts))


def test_only_what_is_new_must_not_be_cut():
    # After "ab#c" 19 tokens are known: of "ab#cd#e" only "d#e" is read, its image at 1 to 16.
    model = shared("llama", adapted=True)
    how = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [2, IMAGE]}
    second = inputs("ab#cd#e")
    second["pixel_values"] = second["pixel_values"][1:]

    def answer(**more):
        with torch.no_grad():
            cache = model(**inputs("ab#c"), use_cache=True).past_key_values
        return model.generate(**second, **{CACHE: cache}, **how, **more)

    assert torch.equal(answer(prefill_chunk_size=17), answer())
    with refused("prefill_chunk_size 16 cuts an image"):
        answer(prefill_chunk_size=16)


def test_generate_refuses_a_static_cache_for_an_image():
    with refused("a StaticCache that holds 0 tokens"):
        shared("llama").generate(
            **inputs("a#b"), max_new_tokens=2, cache_implementation="static", disable_compile=True
        )


def test_generate_takes_a_static_cache_for_text():
    how = {"max_new_tokens": 3, "do_sample": False}
    static = shared("llama").generate(
        **inputs("abc"), **how, cache_implementation="static", disable_compile=True
    )

    assert torch.equal(static, shared_native(text="llama").generate(**inputs("abc"), **how))


@torch.no_grad()
def test_embeddings_instead_of_tokens_are_refused():
    with refused("cannot find the images in inputs_embeds.*fix: pass input_ids"):
        shared("llama")(inputs_embeds=torch.zeros(1, 3, 32))


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
    batch, cache = inputs(prompt), DynamicCache()
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
