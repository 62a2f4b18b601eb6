"""Attention rows from a layer's own queries and keys are those of eager attention.

Faults planted and caught: the usual scaling, no bound of the scores, no mask; shared heads in turn;
written words noted; a window one off, or none; half precision; eager attention whatever was chosen;
a configuration that stays, or is shared; an inner watch that ends the outer, or blinds it.
"""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from tests.backbones import SETTINGS
from tests.families import SIGLIP
from tests.tiny import TOWER, spread_weights, tiny_model
from tests.victor_models import inputs, shared_native
from victorctl.methods.seeing import layers_of
from victorctl.methods.watching import Watch, attention_of

BACKBONES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "cohere", "olmo2")
NO_SDPA = ("gemma2",)  # which bounds its scores
BATCH = ("ab#cd", "abc", "#a#bcde")  # padded on the left; windows are of 7 tokens
CLOSE = {"atol": 1e-5, "rtol": 0}  # twice that where what is attended was computed otherwise
TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(**TOWER)),
    "siglip": (
        SiglipVisionModel,
        SiglipVisionConfig(**{key: SIGLIP[key] for key in SIGLIP if key != "model_type"}),
    ),
}
CASES = [
    (text, how)
    for text in BACKBONES
    for how in ("sdpa", "eager")
    if (text, how) != (*NO_SDPA, "sdpa")
]


def watch(layers):
    """Watch all layers of a model."""
    return Watch({number: attention_of(layer) for number, layer in enumerate(layers)})


def backbone(text, how):
    model = tiny_model(text=text, **SETTINGS[text])
    model.set_attn_implementation(how)
    return model


def tower(name, how):
    cls, config = TOWERS[name]
    config._attn_implementation = how
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
        spread_weights(model)
    return model


def allowed(valid, asking):
    """What tokens may see where no mask says so: what came before and is no padding."""
    return valid & (torch.arange(len(valid)) <= asking[:, None])


@torch.no_grad()
@pytest.mark.parametrize(("text", "how"), CASES)
@pytest.mark.parametrize("prompts", [BATCH, BATCH[:1]], ids=["padded", "alone"])
def test_rows_are_those_of_eager_attention(text, how, prompts):
    batch = inputs(*prompts)
    expected = backbone(text, "eager")(**batch, output_attentions=True).attentions
    model = backbone(text, how)
    with watch(model.get_decoder().layers).watching() as watched:
        model(**batch, use_cache=True)
        for layer, attention in enumerate(expected):
            for row, mask in enumerate(batch["attention_mask"].bool()):
                own = mask.nonzero().squeeze(1)
                asking = own[[0, len(own) // 2, -2, -1]]
                rows = watched.seen[layer].rows(row, asking, allowed(mask, asking))
                assert rows.dtype == torch.float32
                close = CLOSE | {"atol": CLOSE["atol"] * (1 + (how == "sdpa"))}
                torch.testing.assert_close(rows, attention[row][:, asking], **close)


@torch.no_grad()
@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TOWERS)
def test_rows_of_a_tower_are_those_of_eager_attention(name, how):
    pixels = inputs("##")["pixel_values"]
    expected = tower(name, "eager")(pixels, output_attentions=True).attentions
    model = tower(name, how)
    everyone = torch.arange(expected[0].shape[-1])
    with watch(layers_of(model)).watching() as watched:
        model(pixels)
        for layer, attention in enumerate(expected):
            for row in range(2):
                rows = watched.seen[layer].rows(row, everyone)
                torch.testing.assert_close(rows, attention[row], **CLOSE)


@pytest.mark.parametrize("text", ["qwen2", "mistral"])
def test_a_window_bounds_what_is_seen_where_no_mask_does(text):
    # As under flash attention, whose mask has two dimensions.
    batch, model = inputs(*BATCH), backbone(text, "eager")
    layer = len(model.get_decoder().layers) - 1  # of qwen2, the late ones have windows
    with torch.no_grad(), watch(model.get_decoder().layers).watching() as watched:
        model(**batch)
        seen = watched.seen[layer]
        bare = type(seen)(**{**vars(seen), "mask": None})
        for row, mask in enumerate(batch["attention_mask"].bool()):
            asking = mask.nonzero().squeeze(1)[-2:]
            rows = bare.rows(row, asking, allowed(mask, asking))
            torch.testing.assert_close(rows, seen.rows(row, asking), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_watching_changes_no_bit_and_is_over_afterwards(how):
    model, batch = backbone("llama", how), inputs(*BATCH)
    layers = model.get_decoder().layers
    configs = [attention_of(layer).config for layer in layers]
    plain = model(**batch).logits
    with watch(layers).watching() as watched:
        assert torch.equal(model(**batch).logits, plain)
        assert len(watched.seen) == len(layers)
    assert torch.equal(model(**batch).logits, plain)
    assert not watched.seen
    assert not Watch.open
    assert all(
        attention_of(layer).config is own for layer, own in zip(layers, configs, strict=True)
    )


@torch.no_grad()
def test_words_that_are_written_do_not_hide_the_prompt():
    model, batch = shared_native(), inputs("ab#cd")
    with watch(model.get_decoder().layers).watching() as watched:
        model.generate(**batch, max_new_tokens=3, min_new_tokens=3)
        assert watched.seen[0].query.shape[2] == batch["input_ids"].shape[1]


@torch.no_grad()
def test_models_that_are_watched_at_once_do_not_mix():
    models = [tiny_model(seed=seed) for seed in (0, 1)]
    batches = [inputs("ab#cd"), inputs("a#bcd")]
    alone = []
    for model, batch in zip(models, batches, strict=True):
        with watch(model.get_decoder().layers).watching() as watched:
            model(**batch)
            alone.append(watched.seen[2].rows(0, torch.tensor([7, 19])))
    first, second = (watch(model.get_decoder().layers) for model in models)
    with first.watching():
        with second.watching():
            for model, batch in zip(reversed(models), reversed(batches), strict=True):
                model(**batch)
            for watched, rows in zip((first, second), alone, strict=True):
                assert torch.equal(watched.seen[2].rows(0, torch.tensor([7, 19])), rows)
        models[0](**batches[0])  # the other one is over, and this one is not
        assert torch.equal(first.seen[2].rows(0, torch.tensor([7, 19])), alone[0])


@torch.no_grad()
def test_one_model_can_be_watched_twice_and_an_exception_ends_one_watch():
    model, batch = shared_native(), inputs("ab#cd")
    layers = model.get_decoder().layers
    plain = model(**batch).logits
    with watch(layers).watching() as outer:
        inner = watch(layers)

        def stop():
            assert torch.equal(model(**batch).logits, plain)
            assert torch.equal(inner.seen[1].key, outer.seen[1].key)
            raise RuntimeError("on the way")

        with pytest.raises(RuntimeError, match="on the way"), inner.watching():
            stop()
        outer.seen.clear()
        assert torch.equal(model(**batch).logits, plain)
        assert len(outer.seen) == len(layers)
        assert not inner.seen
    assert not Watch.open


def test_what_cannot_be_watched_leaves_the_others_as_they_were():
    model = shared_native()
    layers = [attention_of(layer) for layer in model.get_decoder().layers]
    before = [layer.config for layer in layers]
    with pytest.raises(AttributeError), Watch({0: layers[0], 1: torch.nn.Identity()}).watching():
        pass
    assert [layer.config for layer in layers] == before
    assert layers[0].config is before[0]
    assert not Watch.open
