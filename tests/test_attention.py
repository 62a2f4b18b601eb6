"""What registers attend to, beside the formula of attention written out from a layer's input.

Faults planted and caught: rows of other tokens; columns of text; another layer; heads added up;
renormalised over the picture; late layers too; registers of one tile alone.
"""

import copy
import math
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from tests import backbones
from tests.processors import CASES, PROCESSORS, tiny_family
from tests.tiny import tiny_conversation, tiny_model, tiny_picture
from tests.victor_models import ADAPTER, inputs, victor_llava
from victorctl import modeling_victor
from victorctl.attention import register_attention
from victorctl.data.conversations import Row
from victorctl.families import FAMILIES
from victorctl.questions import prepare, questions

PROMPT, COUNT = "ab#cd", 3  # two words, an image of 16 visual tokens, two words; registers


def made_victor(native, positions):
    """Make a Victor model of a native one's configuration, adapters and offsets and all."""
    config = copy.deepcopy(native.config)
    config.victor = {
        **{"registers": COUNT, "drop_layer": 2, "positions": positions},
        **{"adapter": ADAPTER, "deep": True},
    }
    (family,) = (each for each in FAMILIES if each.model_type == config.model_type)
    torch.manual_seed(3)
    model = getattr(modeling_victor, family.ours)(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.5)
    return model


def laid_out(model, ids, positions):
    """Say what stands where with registers among one row of ids: kinds, and positions."""
    kinds, places = [], []
    visual = [token == model.config.image_token_id for token in ids]
    runs = "image" in model.by_runs
    for place, is_visual in enumerate(visual):
        kinds.append("visual" if is_visual else "text")
        places.append(place)
        after = visual[place + 1 :]
        if is_visual and not (after[:1] == [True] if runs else any(after)):  # an image ends
            kinds += ["register"] * COUNT
            places += range(place - COUNT + 1, place + 1)  # those of its last visual tokens
    return kinds, places if positions == "overlay" else list(range(len(kinds)))


def written_out(model, batch, positions):
    """Compute what registers attend to from what enters each early layer, tiles on average.

    q and k are made by the layer's own Linears, in which adapters act; all else is done here:
    rotation, heads that share keys, scale, what a token may see, softmax, mean over heads.
    """
    text, entered = model.get_decoder(), {}
    kinds, places = laid_out(model, batch["input_ids"][0].tolist(), positions)
    register, visual = (torch.tensor([own == kind for own in kinds]) for kind in KINDS)
    with ExitStack() as hooks:
        for index, layer in enumerate(text.layers):
            keep = layer.input_layernorm.register_forward_pre_hook(
                lambda _norm, given, index=index: entered.update({index: given[0]})
            )
            hooks.callback(keep.remove)
        model(**batch)
    found = []
    for index in range(model.victor.drop_layer):
        seen = attention_of(text, index, entered[index], torch.tensor(places))
        tiles = seen[register][:, visual].unflatten(0, (-1, COUNT))
        found.append(tiles.mean(0))
    return torch.stack(found)


KINDS = "register", "visual"


def attention_of(text, index, entered, position):
    """Compute one layer's attention, the mean over heads [t, t]."""
    settings, layer, length = text.config, text.layers[index], len(position)
    heads, shared, width = 4, 2, settings.head_dim
    angles = position[:, None] * settings.rope_parameters["rope_theta"] ** (
        -torch.arange(0, width, 2) / width
    )  # [t, width / 2]
    turn = torch.cat([angles, angles], dim=-1)
    states = layer.input_layernorm(entered)
    query = layer.self_attn.q_proj(states)[0].view(length, heads, width).transpose(0, 1)
    key = layer.self_attn.k_proj(states)[0].view(length, shared, width).transpose(0, 1)
    if hasattr(layer.self_attn, "q_norm"):
        query, key = layer.self_attn.q_norm(query), layer.self_attn.k_norm(key)
    half = width // 2
    query, key = (
        each * turn.cos() + torch.cat([-each[..., half:], each[..., :half]], -1) * turn.sin()
        for each in (query, key)
    )
    scores = query @ key.repeat_interleave(heads // shared, 0).transpose(1, 2) / math.sqrt(width)
    back = torch.arange(length)[:, None] - torch.arange(length)  # how far back a token is
    window = settings.sliding_window if is_sliding(settings, index) else length
    return scores.masked_fill((back < 0) | (back >= window), -torch.inf).softmax(-1).mean(0)


def is_sliding(settings, index):
    kinds = getattr(settings, "layer_types", None)
    if kinds is None:  # mistral: every layer, where there is a window at all
        return getattr(settings, "sliding_window", None) is not None
    return kinds[index] == "sliding_attention"


@torch.no_grad()
@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("llama", "overlay"),
        ("llama", "append"),
        ("mistral", "overlay"),  # a window that is smaller than the image
        ("qwen2", "append"),
        ("qwen3", "append"),  # norms of queries and keys
        ("gemma", "overlay"),
        ("starcoder2", "append"),
    ],
)
def test_registers_attend_to_what_the_formula_says(text, positions):
    model = made_victor(tiny_model(text=text, **backbones.SETTINGS[text]), positions)

    found = register_attention(model, inputs(PROMPT))

    assert found.shape == (2, COUNT, 16)
    expected = written_out(model, inputs(PROMPT), positions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert ((found.sum(-1) > 0) & (found.sum(-1) < 1)).all()


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [case for case in CASES if not {"aya_vision", "cohere2_vision"} & {*case.values}]
)  # of those two the text model rotates in another way
def test_so_they_do_in_every_family_with_the_mean_of_tiles_that_have_their_own(name):
    model, processor = made_victor(tiny_family(name), "overlay"), PROCESSORS[name]()
    row = Row("", (tiny_picture(1, (70, 40)),), (tiny_conversation(),))
    batch = prepare(questions([row], None), processor, pictures=True).for_model(model)

    found = register_attention(model, batch)

    assert found.shape[-1] == (batch["input_ids"] == model.config.image_token_id).sum()
    expected = written_out(model, batch, "overlay")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_look_leaves_the_model_as_it_was():
    model = victor_llava(adapter=ADAPTER, deep=True)
    before, reduce = model(**inputs(PROMPT)).logits, model.victor.reduce

    register_attention(model, inputs(PROMPT))

    assert torch.equal(model(**inputs(PROMPT)).logits, before)
    assert model.get_decoder().config._attn_implementation == "sdpa"
    assert model.victor.reduce is reduce


@torch.no_grad()
def test_of_an_elastic_model_those_in_use_are_looked_at():
    model = victor_llava(positions="append")  # where the first stay where they are
    every = register_attention(model, inputs(PROMPT))
    model.victor.use(2)

    torch.testing.assert_close(register_attention(model, inputs(PROMPT)), every[:, :2])
