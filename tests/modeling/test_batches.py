"""A row of a batch computes what it computes alone, whatever stands beside it.

Faults planted and caught: registers of absent images are valid; late padding attended; only the
first image trains the registers; adapters learn through a detached input; text alone trains
nothing; text alone has its part in what is learned where nothing is trained, or is off.
"""

import copy
from contextlib import nullcontext

import pytest
import torch

from tests.modeling.laws import assert_close
from tests.victor_models import (
    ALL,
    each,
    inputs,
    labelled,
    shared,
    shared_native,
    victor_llava,
)

BACKBONES = ("llama", "qwen2", "mistral", "gemma")
PROMPTS = ("ab#cd", "abc", "#a#bcde", "ab##c", "#")  # 3 to 37 tokens


def own_logits(model, batch):
    """Logits of every row at its own tokens."""
    rows = zip(model(**batch).logits, batch["attention_mask"].bool(), strict=True)
    return [logits[own] for logits, own in rows]


def assert_rows_are_independent(model):
    alone = [own_logits(model, single)[0] for single in each(*PROMPTS)]
    for side in ("left", "right"):
        batched = own_logits(model, inputs(*PROMPTS, side=side))
        for row, expected in zip(batched, alone, strict=True):
            assert_close(row, expected)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize("text", BACKBONES)
@torch.no_grad()
def test_a_row_padded_left_or_right_equals_its_prompt_alone(text, positions, adapted):
    assert_rows_are_independent(shared(text, positions=positions, adapted=adapted))


@torch.no_grad()
def test_a_padded_row_equals_its_prompt_alone_under_a_sliding_window():
    assert_rows_are_independent(victor_llava("mistral", window=7))


@torch.no_grad()
def test_a_register_that_is_all_that_is_left_of_a_prompt_is_still_one():
    assert_rows_are_independent(shared("llama", registers=1, adapted=True))


@pytest.mark.parametrize("positions", ["overlay", "append"])
@torch.no_grad()
def test_the_last_logits_of_a_prompt_that_ends_in_an_image_are_its_own(positions):
    model, prompts = shared("llama", positions=positions, adapted=True), ("a#", "bcd##", "ef")

    last = model(**inputs(*prompts), logits_to_keep=1).logits[:, 0]

    assert last.isfinite().all()
    assert last.any(dim=1).all()
    for row, alone in zip(last, each(*prompts), strict=True):
        assert_close(row, model(**alone).logits[0, -1])


@torch.no_grad()
def test_a_row_is_untouched_by_the_pictures_of_another():
    model, batch = shared("llama", adapted=True), inputs("a#b", "c#d")
    before = model(**batch).logits
    batch["pixel_values"][1] += 1

    after = model(**batch).logits

    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


@torch.no_grad()
def test_every_picture_of_a_row_counts():
    model, batch = shared("llama"), inputs("a##b")
    before = model(**batch).logits[0, -1]

    swapped = model(**{**batch, "pixel_values": batch["pixel_values"].flip(0)}).logits[0, -1]

    assert not torch.allclose(swapped, before, atol=1e-2)


@torch.no_grad()
def test_a_mask_is_not_needed_where_there_is_no_padding():
    model, batch = shared("llama", adapted=True), inputs("ab#cd", "ef#gh")
    expected = model(**batch).logits
    del batch["attention_mask"]

    assert torch.equal(model(**batch).logits, expected)


# ---- Training ------------------------------------------------------------------------------------


def loss_and_gradients(model, batch):
    batch = labelled(batch)
    loss = model(**batch).loss
    answers = int((batch["labels"][:, 1:] != -100).sum())
    gradients = torch.autograd.grad(loss, list(model.victor.parameters()))
    return answers, [answers * value.detach() for value in (loss, *gradients)]


@pytest.mark.parametrize(
    ("text", "side", "positions"),
    [
        ("llama", "left", "overlay"),
        ("llama", "right", "overlay"),
        ("llama", "right", "append"),
        ("gemma", "right", "overlay"),
    ],
)
def test_loss_and_gradients_of_a_padded_batch_are_those_of_its_rows(text, side, positions):
    model = victor_llava(
        text, positions=positions, adapter={"rank": 2, "alpha": 3, "layers": "all"}, deep=True
    )
    prompts = ("ab#cd", "#a#bcde", "a##bc")

    answers, batched = loss_and_gradients(model, inputs(*prompts, side=side))
    alone = [loss_and_gradients(model, single) for single in each(*prompts)]

    assert answers == sum(count for count, _ in alone)
    for place, value in enumerate(batched):
        assert value.any()  # every parameter learns
        assert_close(value, sum(values[place] for _, values in alone), tolerance=1e-4)


def test_the_gradient_of_a_register_is_the_slope_of_the_loss():
    model = victor_llava(adapter={"rank": 2, "alpha": 3, "layers": "all"}).double()
    batch = labelled(inputs("ab#cd", "#a#bcde", side="right"))
    batch["pixel_values"] = batch["pixel_values"].double()
    weight = model.victor.registers.weight
    slope = torch.autograd.grad(model(**batch).loss, weight)[0][1, 5]

    with torch.no_grad():
        losses = []
        for step in (1e-3, -2e-3):
            weight[1, 5] += step
            losses.append(model(**batch).loss)

    assert float(losses[0] - losses[1]) / 2e-3 == pytest.approx(float(slope), rel=1e-3)


# ---- Training on text alone ----------------------------------------------------------------------


@pytest.fixture
def learning():
    """A model of which only what Victor adds is trained."""
    model = victor_llava(**ALL).train().requires_grad_(False)
    model.victor.requires_grad_(True)
    return model


TEXT = labelled(inputs("abcd", "ef"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_text_alone_gives_all_that_is_learned_a_gradient_of_zero(
    learning, checkpointing
):
    if checkpointing:
        learning.activation_checkpointing_enable({"use_reentrant": False})

    loss = learning(**TEXT).loss
    loss.backward()

    assert torch.equal(loss, copy.deepcopy(shared_native(text="llama")).train()(**TEXT).loss)
    gradients = {
        name: each.grad for name, each in learning.named_parameters() if each.grad is not None
    }
    assert gradients.keys() == {f"victor.{name}" for name, _ in learning.victor.named_parameters()}
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("mode", ["eval", "no_grad", "registers_off"])
def test_where_nothing_is_trained_text_alone_calls_nothing_that_is_learned(learning, mode):
    def called(module, given):
        pytest.fail(f"{module} was called")

    for part in learning.victor.modules():
        part.register_forward_pre_hook(called)
    contexts = {
        "eval": nullcontext,
        "no_grad": torch.no_grad,
        "registers_off": learning.registers_off,
    }

    with contexts[mode]():
        output = learning.train(mode != "eval")(**TEXT)

    assert not output.loss.requires_grad
    native = copy.deepcopy(shared_native(text="llama")).train(mode != "eval")
    assert torch.equal(output.logits, native(**TEXT).logits)
