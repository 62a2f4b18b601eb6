"""Pictures of different sizes give different numbers of visual tokens, and each its own registers.

A Pixtral tower cuts a picture into patches of 8 x 8 whatever its size.

Faults planted and caught: all images as long as each other; images in one chunk taken for one;
every image read in the first chunk; chunks that cut a picture; chunks that end where pictures meet
refused; overlay asks the largest picture; late padding attended.
"""

import copy
import functools

import pytest
import torch
from torch import nn
from transformers import LlavaConfig, PixtralVisionConfig

from tests.modeling.laws import assert_close
from tests.tiny import tiny_model
from tests.victor_models import ADAPTER, IMAGE, PLAIN, ids
from victorctl.modeling_victor import VictorLlava

SIZES = ((24, 16), (16, 40), (32, 32), (8, 24))  # of the pictures in turn: height and width
TOKENS = (6, 10, 16, 3)
PROMPTS = ("a#b", "c", "##", "d#e#")  # pictures 0; none; 1 and 2; 3 and 0 again
GREEDY = {**PLAIN, "max_new_tokens": 4}


@functools.cache
def pixtral(positions="overlay", registers=3):
    """Build a Victor model with a Pixtral tower and adapters that are not zero."""
    native = tiny_model()
    config = LlavaConfig(
        text_config=copy.deepcopy(native.config.text_config),
        vision_config=PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
        ),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    config.victor = {
        "registers": registers,
        "drop_layer": 2,
        "positions": positions,
        "adapter": ADAPTER,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = VictorLlava(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    model.generation_config = native.generation_config
    return model


def inputs(*prompts, first=0):
    """Batch prompts, `#` being as many placeholders as the next picture has patches."""
    rows, sizes, number = [], [], first
    for prompt in prompts:
        rows.append([])
        for sign in prompt:
            rows[-1] += [IMAGE] * TOKENS[number % 4] if sign == "#" else ids(sign)
            if sign == "#":
                sizes.append(SIZES[number % 4])
                number += 1
    longest = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ),
    }
    if sizes:
        batch["image_sizes"] = torch.tensor(sizes)
        batch["pixel_values"] = torch.zeros(len(sizes), 3, 32, 40)
        for place, (height, width) in enumerate(sizes):
            draw = torch.Generator().manual_seed((first + place) % 4)
            picture = torch.randn(3, height, width, generator=draw)
            batch["pixel_values"][place, :, :height, :width] = picture
    return batch


def each(*prompts):
    """Make the inputs of every prompt alone, with the pictures that it has in the batch of all."""
    seen = ["".join(prompts[:place]).count("#") for place in range(len(prompts))]
    return [inputs(prompt, first=first) for prompt, first in zip(prompts, seen, strict=True)]


def test_pictures_have_as_many_visual_tokens_as_patches():
    features = pixtral().model.get_image_features(
        **{name: inputs("####")[name] for name in ("pixel_values", "image_sizes")}
    )

    assert tuple(map(len, features.pooler_output)) == TOKENS


@pytest.mark.parametrize("positions", ["overlay", "append"])
@torch.no_grad()
def test_every_picture_has_its_registers_right_behind_it(positions):
    # Read in pieces of one picture each, there is nothing to tell apart.
    model = pixtral(positions)
    whole = model(**inputs("#a##b#"), use_cache=True)

    cache, pieces = None, []
    for number, piece in enumerate(("#a", "#", "#b", "#")):
        output = model(**inputs(piece, first=number), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)

    assert_close(torch.cat(pieces, dim=1), whole.logits)
    lengths = [layer.get_seq_length() for layer in whole.past_key_values.layers]
    assert lengths == [sum(TOKENS) + 2 + 4 * 3] * 2 + [2 + 4 * 3] * 4


@pytest.mark.parametrize(("positions", "beams"), [("overlay", 1), ("append", 2)])
def test_a_row_generates_what_it_generates_alone_and_uncached(positions, beams):
    model, how = pixtral(positions), {**GREEDY, "num_beams": beams}

    batched = model.generate(**inputs(*PROMPTS), **how)

    assert torch.equal(batched, model.generate(**inputs(*PROMPTS), **how, use_cache=False))
    alone = [model.generate(**single, **how)[0, -4:] for single in each(*PROMPTS)]
    assert torch.equal(batched[:, -4:], torch.stack(alone))


def test_chunks_that_leave_pictures_whole_change_no_token():
    # The pictures stand at 1 to 6, 7 to 16, 17 to 32. A chunk of 17 ends where two of them meet.
    model, batch = pixtral(), inputs("a###bcd")

    chunked = model.generate(**batch, **GREEDY, prefill_chunk_size=17)

    assert torch.equal(chunked, model.generate(**batch, **GREEDY))
    with pytest.raises(ValueError, match="prefill_chunk_size 16 cuts an image"):
        model.generate(**batch, **GREEDY, prefill_chunk_size=16)


@torch.no_grad()
def test_overlay_needs_as_many_visual_tokens_in_the_smallest_picture_as_registers():
    model = pixtral(registers=6)
    assert model(**inputs("###")).logits.isfinite().all()  # 6, 10 and 16

    with pytest.raises(ValueError, match="6 registers cannot overlay an image of 3 visual tokens"):
        model(**inputs("####"))
