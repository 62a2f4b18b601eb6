"""Each way of using a model's weights computes, caches and costs what is said of it.

Faults planted and caught: the layer of another variant stays, registers stay cut, the hooks of
register-LoRA act in the base, the updates are not counted, a method is charged for registers.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.victor_models import ADAPTER, shared_native, victor_llava
from victorctl import cost
from victorctl.errors import VictorError
from victorctl.methods import METHODS
from victorctl.modeling_victor import VictorMixin
from victorctl.trials import cached_bytes, prefill, trial
from victorctl.variants import Variant, check, native, parse, unconverted

LAYERS, VISUAL, TEXT = 6, 16, 10
USUAL = Variant("victor", 8, 3)
CHOOSING = ("pool", "fastv", "sparsevlm", "pyramiddrop")  # by products of their own
UNPLANNED = ("prumerge", "prumerge+", "ogs")  # what the picture decides, or boxes in it


@pytest.fixture(scope="module")
def model():
    """A model with all that may be learned; eager, as PyTorch counts no other attention here."""
    made = victor_llava(registers=8, drop_layer=3, adapter=ADAPTER, deep=True)
    made.set_attn_implementation("eager")
    return made


@pytest.fixture(scope="module")
def prompts(model):
    return trial(model, 2, TEXT, None, 0)


def flops(who, prompts):
    """Count what the language model does for a prompt, and what its cache holds of it."""
    prompts = prompts if who.pictures else prompts.without_pictures()
    prompts = prompts.without_features() if who.own_eyes else prompts
    with FlopCounterMode(display=False) as counter, who.acting(prompts.rows):
        output = prefill(who.model, prompts)
    counted = counter.get_total_flops()
    if who.own_eyes:
        with FlopCounterMode(display=False) as seeing, who.acting(prompts.rows), torch.no_grad():
            who.model.model.get_image_features(**prompts.pixels)
        counted -= seeing.get_total_flops()
    return counted / len(prompts.ids), cached_bytes(output) / len(prompts.ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16@2", ("victor", 16, 2)),
        ("16", ("victor", 16, 3)),
        ("@2", ("victor", 8, 2)),
        ("victor:16@2", ("victor", 16, 2)),
        ("random", ("random", 8, 3)),
        ("random:16", ("random", 16, 3)),
        ("random@2", ("random", 8, 2)),
        ("no-image", ("no-image", 8, 3)),
        ("vtc-cls:5", ("vtc-cls", 5, 3)),
    ],
)
def test_a_variant_is_spelled_with_what_differs(text, expected):
    found = parse(text, USUAL)
    assert found == Variant(*expected)
    assert parse(found.name, USUAL) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-image:16", "no-image has no count to be set\n  fix: leave 16 out"),
        ("prumerge:16@3", "prumerge has no count to be set"),
        ("vtc-cls@5", "vtc-cls has no one layer to be set\n  fix: leave 5 out"),
    ],
)
def test_numbers_that_a_method_does_not_have_are_refused(text, said):
    with pytest.raises(VictorError, match=said):
        parse(text, USUAL)


@pytest.mark.parametrize("text", ["", ":", "16@", "@", "a:b", "16@3@4", "random:", "-3", "1.5"])
def test_what_is_neither_a_number_nor_a_method_is_refused(text):
    with pytest.raises(VictorError, match=r"neither numbers nor a method\n  fix: write regis"):
        parse(text, USUAL)


def test_an_unknown_method_is_refused_with_those_that_there_are():
    with pytest.raises(
        VictorError, match=r"no method called 'fast'\n  fix: did you mean fastv\? use"
    ):
        parse("fast:3", USUAL)


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        (("victor", 9, 3), r"victor:9@3: the model has 8 registers\n  fix: choose 1 to 8"),
        (("victor", 8, 6), r"leave at layer 6 of 6\n  fix: choose 1 to 5"),
        (("random", 17, 3), r"random:17@3: a picture has 16 visual tokens\n  fix: choose 1 to 16"),
        (("random", 16, 5), None),  # a method has no registers
        (("pyramiddrop", 50, 3), None),  # per cent
        (("no-registers", 99, 3), None),  # keeps none
        (("random", 0, 3), r"random:0@3: count: input should be greater than or equal to 1\n  fix"),
        (
            ("fastv", 8, 0),
            r"fastv:8@0: layer: input should be greater than or equal to 1\n  fix: ch",
        ),
        (
            ("pyramiddrop", 101, 3),
            r"pyramiddrop:101: percent: input should be less than or equal",
        ),
        (("victor", 8, 5), None),
    ],
)
def test_more_than_the_model_has_is_refused(variant, problem):
    def ask():
        check(Variant(*variant), layers=6, registers=8, visual=16)

    if problem is None:
        ask()
    else:
        with pytest.raises(VictorError, match=problem):
            ask()


def test_tokens_of_a_variant_are_counted_layer_by_layer():
    def tokens(*variant):
        return Variant(*variant).tokens(4, visual=16, text=10)

    assert tokens("victor", 8, 1) == (34, 18, 18, 18)
    assert tokens("random", 8, 1) == (26, 18, 18, 18)  # nothing is added to the early layers
    assert tokens("no-registers", 8, 1) == (26, 10, 10, 10)
    assert tokens("no-image", 8, 1) == (10, 10, 10, 10)


VARIANTS = [
    ("victor", 8, 3),
    ("victor", 8, 5),
    ("victor", 2, 1),
    *((name, 4, 2) for name in METHODS if name not in (*CHOOSING, *UNPLANNED)),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant[0])
def test_a_variant_costs_what_pytorch_counts_and_its_cache_holds(model, prompts, variant):
    variant, shape = Variant(*variant), cost.shape_of(model.config)
    counted, cached = flops(variant.contestant(model, 0), prompts)

    assert variant.flops(model.config, visual=VISUAL, text=TEXT) == counted
    tokens = variant.tokens(LAYERS, visual=VISUAL, text=TEXT)
    assert cost.cache_bytes(shape, tokens) == cached


@pytest.mark.parametrize("name", CHOOSING)
def test_choosing_costs_hardly_more_than_its_tokens(model, prompts, name):
    variant = Variant(name, 4, 2)
    counted, _ = flops(variant.contestant(model, 0), prompts)
    assert variant.flops(model.config, visual=VISUAL, text=TEXT) == pytest.approx(counted, rel=0.01)


def test_a_method_that_has_layers_of_its_own_acts_there():
    assert Variant("pyramiddrop", 50, 1).tokens(LAYERS, visual=16, text=1) == (17, 17, 9, 5, 3, 3)
    assert Variant("vtc-cls", 5, 4).tokens(LAYERS, visual=16, text=1) == (6,) * 6


def test_the_base_costs_what_pytorch_counts_and_its_cache_holds(model, prompts):
    counted, cached = flops(unconverted(model), prompts)
    shape, tokens = cost.shape_of(model.config), [VISUAL + TEXT] * LAYERS
    assert (cost.prefill_flops(shape, tokens), cost.cache_bytes(shape, tokens)) == (counted, cached)


def test_the_base_is_the_native_class_on_the_same_weights(model, prompts):
    base = unconverted(model)
    plain = shared_native()
    prefill(model, prompts)  # what is learned stands open where this one's registers were
    with base.acting(prompts.rows):
        found = prefill(base.model, prompts).logits
    expected = prefill(plain, prompts).logits

    assert type(base.model) is type(plain)
    assert not [part for part in base.model.modules() if isinstance(part, VictorMixin)]
    assert type(base.model.get_decoder()) is type(plain.get_decoder())
    own = dict(model.named_parameters())
    for name, value in base.model.named_parameters():
        assert value is own[name]
    assert torch.allclose(found, expected, atol=1e-5)  # that one runs another attention


def test_a_view_as_the_native_class_leaves_the_model_as_it_was(model, prompts):
    before = prefill(model, prompts).logits
    native(model)
    assert torch.equal(prefill(model, prompts).logits, before)
    assert "victor" in dict(model.named_children())


@pytest.mark.parametrize("variant", [("victor", 2, 1), ("random", 4, 2)])
def test_a_variant_leaves_the_model_as_it_was(model, prompts, variant):
    before = prefill(model, prompts).logits
    who = Variant(*variant).contestant(model, 0)

    def stop():
        assert not torch.equal(prefill(model, prompts).logits, before)
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"), who.acting(prompts.rows):
        stop()
    assert torch.equal(prefill(model, prompts).logits, before)
    assert (model.victor.registers.count, model.victor.drop_layer) == (8, 3)
