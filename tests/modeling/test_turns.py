"""A turn on a cache that is filled already equals reading all turns from the start.

Faults planted and caught: a mask is read from its left; next position forgets the past; crop leaves
positions; crop leaves masks; append starts again at zero each call; append believes the caller's
positions; pre-encoded images are not seen; packed judged where a mask is given; gaps judged in
padding; a copy is the original.
"""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.modeling.laws import assert_close
from tests.victor_models import generate, ids, inputs, pictures, shared
from victorctl.modeling_victor import CACHE


def next_turn(batch, so_far, *added):
    """Extend every row by what it generated and by its part of the next turn."""
    tokens = torch.tensor([ids(part) for part in added])
    grown = torch.cat([so_far, tokens], dim=1)
    ones = torch.ones(len(grown), grown.shape[1] - batch["input_ids"].shape[1], dtype=torch.long)
    return {"input_ids": grown, "attention_mask": torch.cat([batch["attention_mask"], ones], dim=1)}


@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize("text", ["llama", "gemma"])
@pytest.mark.parametrize(
    ("prompts", "added", "order"),
    [
        (("ab#cd", "efg"), ("hij", "klm"), [0]),  # text follows
        (("ab#cd",), ("e#f",), [0, 1]),  # a new image follows an image
        (("ab#", "c##d"), ("#efghijklmnopqrst#", "efghijklmnopqrst##"), [0, 3, 4, 1, 2, 5, 6]),
        (("abc", "d"), ("e#f", "#gh"), [0, 1]),  # a new image follows text
        (("a#b", "cd"), ("efghijklmnopqrst", "#"), [0, 1]),  # one row goes on without
    ],
    ids=["text", "image", "images", "first", "one"],
)
def test_a_second_turn_passes_only_what_is_new(text, positions, prompts, added, order):
    model, batch = shared(text, positions=positions, adapted=True), inputs(*prompts)
    first = generate(model, batch)
    second = next_turn(batch, first.sequences, *added)
    had, new = "".join(prompts).count("#"), "".join(added).count("#")
    if new:
        second["pixel_values"] = pictures(new, first=had)

    continued = generate(model, second, past_key_values=first.past_key_values)

    every = pictures(had + new)[order] if new else batch["pixel_values"]
    scratch = generate(model, {**second, "pixel_values": every}, use_cache=False)
    assert torch.equal(continued.sequences, scratch.sequences)
    for step, expected in zip(continued.logits, scratch.logits, strict=True):
        assert_close(step, expected, tolerance=2e-5)


@pytest.mark.parametrize("added", ["efg", "e#f"])
def test_new_tokens_may_come_alone_under_a_mask_of_all(added):
    model, batch = shared("llama", adapted=True), inputs("ab#cd", "c")
    first = generate(model, batch)
    second = next_turn(batch, first.sequences, added, added)
    if "#" in added:
        second["pixel_values"] = pictures(2, first=1)
    other = copy.deepcopy(first[CACHE])
    expected = generate(model, second, **{CACHE: first[CACHE]}).sequences

    second["input_ids"] = second["input_ids"][:, other.get_seq_length() :]
    alone = generate(model, second, **{CACHE: other}).sequences

    assert torch.equal(alone[:, -5:], expected[:, -5:])


@pytest.mark.parametrize("positions", ["overlay", "append"])
def test_a_cache_is_copied_to_go_on_in_several_ways(positions):
    model = shared("llama", positions=positions, adapted=True)
    with torch.no_grad():
        prefix = model(**inputs("ab#c"), use_cache=True)[CACHE]

    for prompt in ("ab#cde", "ab#cfgh", "ab#c##"):
        batch, how = inputs(prompt), {CACHE: copy.deepcopy(prefix)}
        expected = generate(model, batch, use_cache=False).sequences
        batch["pixel_values"] = batch["pixel_values"][1:]
        if not len(batch["pixel_values"]):
            del batch["pixel_values"]
        assert torch.equal(generate(model, batch, **how).sequences, expected)

    assert prefix.get_seq_length() == 19
    assert [layer.get_seq_length() for layer in prefix.layers] == [22, 22, 6, 6, 6, 6]


@pytest.mark.parametrize("positions", ["overlay", "append"])
@torch.no_grad()
def test_calls_need_no_mask_and_no_positions(positions):
    model, cache = shared("llama", positions=positions, adapted=True), DynamicCache()
    parts = ("ab#", "c", "##d", "#", "ef")
    seen = 0
    for part in parts:
        new = part.count("#")
        images = {"pixel_values": pictures(new, first=seen)} if new else {}
        seen += new
        output = model(input_ids=torch.tensor([ids(part)]), past_key_values=cache, **images)

    scratch = model(**inputs("".join(parts)))

    assert_close(output.logits[:, -2:], scratch.logits[:, -2:])


@pytest.mark.parametrize("cropped", [False, True], ids=["whole", "cropped"])
@pytest.mark.parametrize("positions", ["overlay", "append"])
@torch.no_grad()
def test_rows_may_pause_and_their_turns_may_be_padded(positions, cropped):
    model = shared("llama", positions=positions, adapted=True)
    prompts = ("ab#", "c") if not cropped else ("ab#xy", "cxy")
    cache = model(**inputs(*prompts), use_cache=True).past_key_values
    if cropped:
        cache.crop(-2)

    for turn in (("d", "ef"), ("g", ""), ("", "h"), ("i", "j#")):  # the masks are those of the turn
        more = inputs(*turn, first=1)
        step = model(**more, past_key_values=cache).logits[:, -1]

    assert_close(step[0], model(**inputs("ab#dgi")).logits[0, -1])
    assert_close(step[1], model(**inputs("cefhj#", first=1)).logits[0, -1])


@pytest.mark.parametrize("positions", ["overlay", "append"])
def test_a_cropped_cache_goes_on_as_if_the_end_had_never_been(positions):
    model, batch = shared("llama", positions=positions, adapted=True), inputs("a#bc", "def")
    first = generate(model, batch)
    cache = first.past_key_values
    assert cache.get_seq_length() == 19 + 4  # the last token has not been read yet

    cache.crop(-5)
    assert cache.get_seq_length() == 18
    second = next_turn(inputs("a#b", "de"), inputs("a#b", "de")["input_ids"], "#gh", "#ij")

    continued = generate(model, {**second, "pixel_values": pictures(2, 1)}, past_key_values=cache)
    scratch = generate(model, {**second, "pixel_values": pictures(3)}, use_cache=False)
    assert torch.equal(continued.sequences, scratch.sequences)
