"""What a Victor model computes: the native model where nothing is dropped, else drop == mask.

The reference (`masked_logits`) never drops: it runs the native layers one by one over the whole
sequence and masks the visual columns from layer k on.

Faults planted and caught: registers before their image; registers after the whole prompt; drop one
layer late; drop one layer early; positions renumbered after the drop; adapters act on text too;
adapters act on visual tokens too; adapters act in the early slice only; adapters forget alpha /
rank; adapters of `early` in all layers; text before the image dropped; registers dropped too; one
set of registers for a row's images; overlay on the first visual positions; overlay one position
late; append leaves the text where it was; an image answers with its first register; the drop
without registers inserts them; registers_off never ends; registers start at zero; victor registered
in the text model too; padding counts in positions; an image's number counted over the batch;
offsets one layer early; offsets one layer late; offsets of a batch's first image alone;
one register's offset for all; offsets add to text.
"""

import pytest
import torch

from tests.modeling.laws import assert_close
from tests.victor_models import IMAGE, inputs, masked_logits, shared, shared_native, victor_llava
from victorctl.modeling_victor import REGISTER, TEXT, VISUAL, find_images

BACKBONES = ("llama", "qwen2", "mistral", "gemma")
PROMPTS = (
    "ab#cd",  # text before the image
    "#a",  # nothing before it
    "abc#",  # nothing after it
    "a#bc#d",  # the second image sees the registers of the first
    "a##bcd",  # two adjacent images: two sets of registers
)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("text", BACKBONES)
@torch.no_grad()
def test_a_batch_without_images_is_the_native_model_bit_for_bit(text, use_cache, side):
    batch = inputs("abcde", "fg", side=side)

    ours = shared(text, adapted=True)(**batch, use_cache=use_cache).logits

    assert torch.equal(ours, shared_native(text=text)(**batch, use_cache=use_cache).logits)


@pytest.mark.parametrize("text", BACKBONES)
@torch.no_grad()
def test_registers_off_is_the_native_model_bit_for_bit_and_only_for_a_while(text):
    model, batch = shared(text, adapted=True), inputs("ab#cd", "e##f")
    before = model(**batch).logits

    with model.registers_off():
        off = model(**batch).logits

    assert torch.equal(off, shared_native(text=text)(**batch).logits)
    assert torch.equal(model(**batch).logits, before)
    assert not torch.equal(off, before)


@torch.no_grad()
def test_registers_off_ends_when_the_code_under_it_fails():
    model = shared("llama")

    with pytest.raises(KeyError), model.registers_off():
        raise KeyError

    assert model.victor.enabled


@torch.no_grad()
def test_generating_with_registers_off_is_the_native_model():
    batch = inputs("ab#cd", "e##f")
    model, native = shared("llama", adapted=True), shared_native(text="llama")

    with model.registers_off():
        ours = model.generate(**batch, max_new_tokens=5, do_sample=False)

    assert torch.equal(ours, native.generate(**batch, max_new_tokens=5, do_sample=False))


@pytest.mark.parametrize("text", BACKBONES)
def test_wrapping_adds_only_victor_tensors_to_the_state_dict(text):
    native = shared_native(text=text).state_dict()
    state = shared(text, adapted=True).state_dict()

    base = {name: tensor for name, tensor in state.items() if not name.startswith("victor.")}

    assert base.keys() == native.keys()
    assert all(torch.equal(base[name], native[name]) for name in native)


def test_adapters_lie_on_every_linear_of_the_layers_that_the_settings_name():
    early = {"rank": 2, "alpha": 2, "layers": "early"}
    model = victor_llava("llama", drop_layer=3, adapter=early)

    layers = {name.split(".")[2] for name in model.state_dict() if ".linears." in name}

    assert layers == {"0", "1", "2"}
    assert list(model.victor.adapters["0"].linears) == [
        "self_attn-q_proj",
        "self_attn-k_proj",
        "self_attn-v_proj",
        "self_attn-o_proj",
        "mlp-gate_proj",
        "mlp-up_proj",
        "mlp-down_proj",
    ]


def test_offsets_lie_before_every_layer_below_the_drop_but_the_first():
    state = victor_llava("llama", drop_layer=4, deep=True).state_dict()

    offsets = {name: value.shape for name, value in state.items() if ".offsets." in name}

    assert offsets == {f"victor.offsets.{index}.weight": (3, 32) for index in (1, 2, 3)}


@torch.no_grad()
def test_a_deep_model_whose_offsets_are_zero_is_the_one_without_them():
    deep, plain = victor_llava(drop_layer=4, deep=True), victor_llava(drop_layer=4)
    batch = inputs("ab#cd", "e##f")
    assert not torch.equal(deep(**batch).logits, plain(**batch).logits)

    for offset in deep.victor.offsets.values():
        offset.weight.zero_()

    assert torch.equal(deep(**batch).logits, plain(**batch).logits)


def test_a_fresh_model_has_registers_like_embeddings_and_all_else_does_nothing():
    adapter = {"rank": 4, "alpha": 4, "layers": "all"}
    config = victor_llava(registers=200, adapter=adapter, deep=True).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        victor = type(shared())(config).victor

    assert victor.registers.weight.std().item() == pytest.approx(0.02, rel=0.1)
    low_rank = victor.adapters["0"].linears["mlp-down_proj"]  # 64 wide: 64 ** -0.5
    assert low_rank.down.std().item() == pytest.approx(0.125, rel=0.15)
    assert not low_rank.up.any()
    assert not victor.offsets["1"].weight.any()


# ---- drop == mask --------------------------------------------------------------------------------


def assert_drop_equals_mask(model, text, prompt):
    victor = {name: value for name, value in model.state_dict().items() if "victor." in name}
    expected = masked_logits(shared_native(text=text), victor, model.config.victor, prompt)

    with torch.no_grad():
        ours = model(**inputs(prompt)).logits[0]

    columns = list(expected)
    assert_close(ours[columns], torch.stack([expected[column] for column in columns]))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize("text", BACKBONES)
def test_dropping_is_masking(text, positions, adapted, prompt):
    assert_drop_equals_mask(shared(text, positions=positions, adapted=adapted), text, prompt)


@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize(("registers", "drop_layer"), [(1, 1), (5, 3), (16, 5)])
def test_dropping_is_masking_for_any_number_of_registers_and_layers(
    registers, drop_layer, positions
):
    model = victor_llava(
        registers=registers,
        drop_layer=drop_layer,
        positions=positions,
        adapter={"rank": 3, "alpha": 5, "layers": "early"},
        deep=True,
    )

    assert_drop_equals_mask(model, "llama", "a#bc##d")


def test_appended_registers_may_outnumber_the_visual_tokens():
    model = victor_llava(registers=20, positions="append")

    assert_drop_equals_mask(model, "llama", "a#b##c")


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (
            "overlay",
            [0, *range(1, 17), 15, 16, 17],
        ),  # the registers lie on the last two visual tokens
        (
            "append",
            [0, *range(1, 17), 17, 18, 19],
        ),  # and here after them, the text one by one later
    ],
)
def test_every_token_knows_its_place(positions, expected):
    # "a#b" beside "c", which is padded on the left by 17, and by 2 more where it has no registers.
    text = victor_llava(registers=2, positions=positions).model.language_model
    batch = inputs("a#b", "c")
    images = find_images(batch["input_ids"] == IMAGE, torch.tensor([16]))

    hidden, tokens = text.arrange(
        torch.zeros(2, 18, 32), batch["attention_mask"], None, None, images
    )

    assert tokens.kind[0].tolist() == [TEXT, *[VISUAL] * 16, REGISTER, REGISTER, TEXT]
    assert tokens.position[0].tolist() == expected
    assert tokens.origin[0].tolist() == [*range(17), -1, -1, 17]
    assert tokens.heir[0].tolist() == [*[-1] * 18, 16, -1]
    assert tokens.image[0].tolist() == [-1, *[0] * 18, -1]
    assert tokens.valid.tolist() == [[True] * 20, [False] * 19 + [True]]
    assert (tokens.position[1, -1], tokens.origin[1, -1]) == (0, 17)
    assert set(tokens.origin[1, :-1].tolist()) == {-1}
    assert torch.equal(hidden[0, 17:19], text.victor.registers.weight)
    assert not hidden[1].any()


@torch.no_grad()
def test_columns_that_nobody_answers_for_are_zero():
    model = shared("llama")

    states = model(**inputs("a#b"), output_hidden_states=True).hidden_states[-1][0]

    assert not states[1:16].any()  # the image's tokens but the last
    assert states[[0, 16, 17]].any(dim=1).all()


@torch.no_grad()
def test_without_inserting_the_visual_tokens_leave_and_nothing_comes():
    model = victor_llava(registers=3)
    model.victor.inserting = False
    none = {"victor.registers.weight": torch.zeros(0, 32)}
    settings = {**model.config.victor, "registers": 0}
    expected = masked_logits(shared_native(text="llama"), none, settings, "ab#cd")

    ours = model(**inputs("ab#cd")).logits[0]

    assert_close(ours[list(expected)], torch.stack(list(expected.values())))
