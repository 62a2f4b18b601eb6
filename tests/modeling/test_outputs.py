"""What else comes out of a forward, and what can be done with a model besides calling it.

Faults planted and caught: hooks never installed; hooks installed only for arguments; the state at
the cut counted twice; states chosen slice by slice; numbers out of range counted round; states of
the sequence, not the caller's; a copy's hooks stay with the original; a second hook beside the
first; hooks that stay; registers not cast to the hidden type; adapters not cast; gates closed after
the forward; gates not kept for a layer that is computed again; the cache passed on under its old
name only, and under its new name only.
"""

import ast
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from tests.modeling.laws import assert_close
from tests.victor_models import (
    ALL,
    IMAGE,
    ids,
    inputs,
    labelled,
    masked_logits,
    shared,
    shared_native,
    victor_llava,
)
from victorctl import modeling_victor
from victorctl.modeling_victor import CACHE

BATCH = ("ab#cd", "#e#f")  # 20 and 34 tokens
LENGTH = 34


@torch.no_grad()
def states(model, **how):
    return model(**inputs(*BATCH), output_hidden_states=True, **how).hidden_states


def test_hidden_states_have_the_callers_length_at_every_layer_and_call():
    model = victor_llava()

    for _ in range(3):
        assert [tuple(state.shape) for state in states(model)] == [(2, LENGTH, 32)] * 7


def test_hidden_states_can_be_asked_for_in_the_configuration():
    model = victor_llava()
    expected = states(model)
    model.model.language_model.config.output_hidden_states = True

    for _ in range(3):
        with torch.no_grad():
            output = model(**inputs(*BATCH)).hidden_states
        assert len(output) == 7
        assert all(map(torch.equal, output, expected))


@pytest.mark.parametrize("asked", [2, -1, [0], [1, -2], [6, -1], [-7], [7], [9], [-8, 3], [-9]])
@torch.no_grad()
def test_hidden_states_that_are_chosen_by_number_are_those_of_the_native_class(asked):
    # Which asks its vision tower by the same number, so it is given no image here.
    model, native = shared("llama"), shared_native(text="llama")
    every, expected = states(model), native(**inputs("abc"), output_hidden_states=asked)

    some = model(**inputs(*BATCH), output_hidden_states=asked).hidden_states

    assert len(some) == len(every) == 7
    for ours, whole, theirs in zip(some, every, expected.hidden_states, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, whole)


@pytest.mark.parametrize("asked", [0, []])
@torch.no_grad()
def test_no_number_is_none(asked):
    for prompts in (BATCH, ("abc",)):
        output = shared("llama")(**inputs(*prompts), output_hidden_states=asked)
        assert output.hidden_states is None


@torch.no_grad()
def test_hidden_states_are_the_native_ones_as_far_as_nothing_differs():
    # No token up to a row's first image sees a register, and the first k = 2 layers drop nothing.
    ours = states(shared("llama"))
    native = shared_native(text="llama")(**inputs(*BATCH), output_hidden_states=True).hidden_states

    for layer in (0, 1):
        assert_close(ours[layer][0, 14:32], native[layer][0, 14:32])  # "ab#", padded by 14
        assert_close(ours[layer][1, :16], native[layer][1, :16])
    assert not ours[2][0, 16:31].any()  # dropped


@torch.no_grad()
def test_the_last_hidden_state_is_what_the_head_reads():
    model = shared("llama")
    output = model(**inputs(*BATCH), output_hidden_states=True)

    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)


@torch.no_grad()
def test_hidden_states_and_attentions_of_a_batch_without_images_are_the_native_ones():
    how = {"output_hidden_states": True, "output_attentions": True}
    ours, native = copy.deepcopy(shared("llama")), copy.deepcopy(shared_native(text="llama"))
    for model in (ours, native):
        model.set_attn_implementation("eager")

    for _ in range(2):
        one, other = ours(**inputs("abc", "d"), **how), native(**inputs("abc", "d"), **how)
        for name in ("hidden_states", "attentions"):
            assert len(one[name]) == len(other[name])
            assert all(map(torch.equal, one[name], other[name]))


@torch.no_grad()
def test_hidden_states_and_attentions_with_registers_off_are_the_native_ones():
    how = {"output_hidden_states": True, "output_attentions": True}
    ours, native = victor_llava(**ALL), copy.deepcopy(shared_native(text="llama"))
    for model in (ours, native):
        model.set_attn_implementation("eager")

    for _ in range(2):
        with ours.registers_off():
            one, other = ours(**inputs(*BATCH), **how), native(**inputs(*BATCH), **how)
        assert one.keys() == other.keys()
        for name in ("hidden_states", "attentions"):
            assert len(one[name]) == len(other[name])
            assert all(map(torch.equal, one[name], other[name]))
        ours(**inputs(*BATCH), **how)  # leaves nothing behind


@torch.no_grad()
def test_eager_attention_gives_the_same_logits_and_one_attention_for_each_layer():
    model = victor_llava(**ALL)
    expected = model(**inputs(*BATCH)).logits
    model.set_attn_implementation("eager")

    for _ in range(2):
        output = model(**inputs(*BATCH), output_attentions=True)
        # Early: 34 tokens and 2 x 3 registers. Late: two words and six registers of the second row.
        assert [tuple(each.shape) for each in output.attentions] == (
            [(2, 4, 40, 40)] * 2 + [(2, 4, 8, 8)] * 4
        )

    assert_close(output.logits, expected)


@torch.no_grad()
def test_logits_to_keep_counts_from_the_end_or_marks_what_is_wanted():
    model, batch = shared("llama"), inputs(*BATCH)
    every = model(**batch).logits
    marked = batch["input_ids"] == 15  # one "f" in the second row
    marked[0, -1] = True

    assert torch.equal(model(**batch, logits_to_keep=3).logits, every[:, -3:])
    chosen = torch.tensor([0, 33, 15])
    assert torch.equal(model(**batch, logits_to_keep=chosen).logits, every[:, chosen])
    kept = model(**batch, logits_to_keep=marked).logits
    assert_close(kept.reshape(2, -1), every[marked])


@torch.no_grad()
def test_the_inner_model_is_one_with_registers_too():
    # Trainers call it, and then the head where an answer stands.
    model, batch = shared("llama", adapted=True), inputs(*BATCH)

    output = model.model(**batch)
    in_order = model.model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])

    assert torch.equal(model.lm_head(output.last_hidden_state), model(**batch).logits)
    assert torch.equal(in_order.last_hidden_state, output.last_hidden_state)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_loss_is_the_mean_over_the_labels_of_all_rows(side):
    model, native = shared("llama", adapted=True), shared_native(text="llama")
    batch = labelled(inputs("ab#cd", "#e#f", side=side))
    found = []  # of b, c and d of the first row, e and f of the second: c, e and f follow images
    for prompt, first in (("ab#cd", 0), ("#e#f", 1)):
        tokens = ids(prompt)
        logits = masked_logits(native, model.state_dict(), model.config.victor, prompt, first)
        for column, token in enumerate(tokens[1:]):
            if token != IMAGE:
                found.append(-logits[column].log_softmax(-1)[token])

    loss = model(**batch).loss

    assert len(found) == 5
    assert_close(loss, torch.stack(found).mean())


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@torch.no_grad()
def test_a_cache_may_have_either_name_and_comes_back_under_that_of_the_native_class(name):
    model, batch, cache = shared("llama"), inputs("ab#cd"), DynamicCache()

    output = model(**batch, **{name: cache})
    step = model(input_ids=torch.tensor([ids("e")]), **{name: cache})

    assert output.keys() == shared_native(text="llama")(**batch, use_cache=True).keys()
    assert output[CACHE] is cache
    assert cache.get_seq_length() == 21
    assert_close(step.logits[:, -1], model(**inputs("ab#cde")).logits[:, -1])


def test_a_tuple_comes_back_where_one_is_asked_for():
    model, batch = shared("llama"), inputs(*BATCH)

    output = model(**batch, return_dict=False)

    assert isinstance(output, tuple)
    assert torch.equal(output[0], model(**batch).logits)


# ---- Training, copying, types --------------------------------------------------------------------


def gradients(model, **kwargs):
    loss = model(**labelled(inputs(*BATCH)), **kwargs).loss
    return torch.autograd.grad(loss, list(model.victor.parameters()))


@pytest.mark.parametrize("positions", ["overlay", "append"])
def test_gradient_checkpointing_changes_no_gradient(positions):
    model = victor_llava(positions=positions, **ALL).train()
    expected = gradients(model)

    model.activation_checkpointing_enable({"use_reentrant": False})

    assert all(map(torch.equal, gradients(model), expected))
    assert model(**inputs(*BATCH)).past_key_values is None


def test_gradient_checkpointing_knows_each_batchs_registers():
    # One backward through two batches: by then the second has moved on where the first's stood.
    model = victor_llava(**ALL).train()
    parameters = list(model.victor.parameters())

    def both():
        logits = [model(**inputs(*prompts)).logits for prompts in (BATCH, ("a#b",))]
        return torch.autograd.grad(sum(each.square().sum() for each in logits), parameters)

    expected = both()
    model.activation_checkpointing_enable({"use_reentrant": False})

    for ours, theirs in zip(both(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_base_gives_the_same_gradients():
    model = victor_llava(**ALL)
    expected = gradients(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("victor."))

    assert all(map(torch.equal, gradients(model), expected))


@pytest.mark.parametrize(
    "part", ["registers.weight", "offsets.1.weight", "adapters.5.linears.self_attn-q_proj.up"]
)
@torch.no_grad()
def test_a_copy_is_independent_of_the_original(part):
    model = victor_llava(**ALL)
    before = model(**inputs(*BATCH)).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(**inputs(*BATCH)).logits, before)

    other.victor.get_parameter(part).add_(1)

    assert not torch.equal(other(**inputs(*BATCH)).logits, before)
    assert torch.equal(model(**inputs(*BATCH)).logits, before)


@torch.no_grad()
def test_switching_a_copy_off_leaves_the_original_on():
    model = victor_llava()
    before = model(**inputs(*BATCH)).logits

    with copy.deepcopy(model).registers_off():
        assert torch.equal(model(**inputs(*BATCH)).logits, before)


def test_a_pickled_model_is_the_same_model():
    model = victor_llava(**ALL)
    other = pickle.loads(pickle.dumps(model))  # as torch.save and new processes do

    with torch.no_grad():
        expected = model(**inputs(*BATCH)).logits
        assert torch.equal(other(**inputs(*BATCH)).logits, expected)
        other.victor.registers.weight.add_(1)
        assert not torch.equal(other(**inputs(*BATCH)).logits, expected)


def test_several_threads_run_one_model():
    # Both prompts have registers, at other rows; a layer must not see those of the other thread.
    model, prompts = victor_llava(**ALL), ("ab#cd", "a#bcdefgh")

    def run(prompt):
        with torch.no_grad():
            return model(**inputs(prompt)).logits

    alone = [run(prompt) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, prompts * 20))

    for number, logits in enumerate(together):
        assert_close(logits, alone[number % 2])


@pytest.mark.parametrize(
    "made",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copied", "pickled"],
)
def test_the_unconverted_model_runs_without_hooks(made):
    first = victor_llava(**ALL)
    model = made(first)
    model.victor.attach(model.model.language_model.layers)  # they are hooked already

    def hooks(model):
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.model.language_model.layers.modules()
        )

    assert hooks(model) == 6 * 7 + 1
    with model.registers_off():
        assert hooks(model) == 0
        with model.registers_off():
            assert hooks(model) == 0
        assert hooks(model) == 0
        assert hooks(first) == 6 * 7 + 1
    assert hooks(model) == hooks(first) == 6 * 7 + 1


def halved(model, dtype, *, masters=False):
    """Cast a copy of the model, and the prompts' pictures, to half precision."""
    model = copy.deepcopy(model).to(dtype)
    if masters:
        model.victor.float()
    return model


def half_inputs(dtype, *prompts, **how):
    batch = inputs(*prompts, **how)
    return {**batch, "pixel_values": batch["pixel_values"].to(dtype)}


HALVES = [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)]


@pytest.mark.parametrize(("dtype", "masters"), HALVES)
@torch.no_grad()
def test_half_precision_runs_and_stays_near(dtype, masters):
    model = shared("llama", adapted=True)
    expected = model(**inputs(*BATCH)).logits
    model, batch = halved(model, dtype, masters=masters), half_inputs(dtype, *BATCH)

    output = model(**batch, output_hidden_states=True, use_cache=True)
    tokens = model.generate(**batch, max_new_tokens=3, suppress_tokens=[2, IMAGE])

    layers = output[CACHE].layers
    parts = [output.logits, *output.hidden_states, *(layer.keys for layer in layers)]
    assert {part.dtype for part in parts} == {dtype}
    similar = torch.nn.functional.cosine_similarity(
        output.logits[:, -2:].float(), expected[:, -2:], -1
    )
    assert (similar > 0.95).all()
    assert tokens.shape == (2, LENGTH + 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_row_is_itself_in_half_precision_too(dtype):
    model = halved(shared("llama", adapted=True), dtype)

    batched = model(**half_inputs(dtype, *BATCH), logits_to_keep=1).logits[:, 0].float()

    for row, prompt, first in zip(batched, BATCH, (0, 1), strict=True):
        alone = model(**half_inputs(dtype, prompt, first=first)).logits[0, -1].float()
        assert_close(row, alone, {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype])


def test_the_file_names_no_kind_of_device():
    nodes = list(ast.walk(ast.parse(Path(modeling_victor.__file__).read_text(encoding="utf-8"))))

    said = {node.value for node in nodes if isinstance(node, ast.Constant)}
    said |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}

    assert "device" in said
    assert not {"cuda", "xpu", "mps", "hip"} & said
