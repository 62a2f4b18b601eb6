"""A slice of a text model's layers runs as the backbone would run it, or is found unequal.

Faults planted and caught: every slice is normed; no slice is normed; layer types not cut; the
model's own config cut; a slice registers its layers in the model; a slice is of our class.
"""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from tests.backbones import SETTINGS
from victorctl.modeling_victor import VictorText, mix

LAYERS, WIDTH = 6, 32
SIZES = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def backbone(name, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModel.from_config(CONFIG_MAPPING[name](**SIZES, **more)).eval()
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.data = parameter + 0.2 * noise if parameter.dim() == 1 else 0.3 * noise
    return model


def run(model, hidden, mask):
    return model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state


@torch.no_grad()
def whole_and_slices(name, cut, **more):
    """Run all layers at once, then [0, cut) and [cut, n), over two rows of which one is padded."""
    model = backbone(name, **more)
    hidden = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :3] = False
    whole = run(model, hidden, mask)
    names = list(model.state_dict())
    model.__class__ = mix(VictorText, type(model))
    first, second = (model.layer_slice(*ends) for ends in ((0, cut), (cut, LAYERS)))
    pieces = run(second, run(first, hidden, mask), mask)
    assert list(model.state_dict()) == names
    return whole[mask], pieces[mask]


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_two_slices_are_the_whole_model(name, cut):
    whole, pieces = whole_and_slices(name, cut, **SETTINGS[name])

    assert torch.equal(whole, pieces)


def test_a_backbone_that_scales_embeddings_in_every_slice_shows():
    whole, pieces = whole_and_slices("granite", 2, embedding_multiplier=2.0)

    assert not torch.allclose(whole, pieces, atol=0.1)


@pytest.mark.parametrize("name", ["phi", "gpt_neox"])
def test_a_backbone_whose_last_norm_has_another_name_is_not_sliced(name):
    with pytest.raises(AttributeError, match="no attribute 'norm'"):
        whole_and_slices(name, 2)


@torch.no_grad()
def test_a_slice_of_one_layer_is_that_layer_and_only_the_last_is_normed():
    model = backbone("llama")
    model.__class__ = mix(VictorText, type(model))
    hidden = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(5))
    taken = []
    model.layers[4].register_forward_hook(lambda module, given, output: taken.append(output))
    mask = torch.ones(1, 6, dtype=torch.bool)

    alone = run(model.layer_slice(4, 5), hidden, mask)
    last = run(model.layer_slice(4, 6), hidden, mask)

    assert len(taken) == 2
    assert torch.equal(alone, taken[0])
    assert torch.equal(last, run(model.layer_slice(5, 6), alone, mask))
    unnormed = model.layers[5].register_forward_hook(lambda module, given, out: taken.append(out))
    run(model.layer_slice(5, 6), alone, mask)
    unnormed.remove()
    assert torch.equal(last, model.norm(taken[-1]))


def test_a_slice_shares_every_parameter_and_is_of_the_native_class():
    model = backbone("llama")
    native = type(model)
    model.__class__ = mix(VictorText, native)

    view = model.layer_slice(1, 3)

    assert type(view) is native
    assert isinstance(model, VictorText)
    assert [id(layer) for layer in view.layers] == [id(layer) for layer in model.layers[1:3]]
    assert view.embed_tokens is model.embed_tokens
    assert (view.config.num_hidden_layers, model.config.num_hidden_layers) == (2, LAYERS)
