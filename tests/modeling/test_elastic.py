"""Of a model that was trained for any number of registers, the first few are a model themselves.

Faults planted and caught: the last registers in place of the first; offsets of all registers; a
configuration that still counts all.
"""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.victor_models import BATCH, inputs, pictures, victor_folder, victor_llava
from victorctl.modeling_victor import VictorLlava

ASK = inputs(*BATCH) | {"pixel_values": pictures(3)}


@pytest.fixture(scope="module")
def whole():
    return victor_llava(registers=5, drop_layer=3, deep=True)


def few(whole, count):
    """Build a model of so many registers from its configuration, and put the first into it."""
    config = copy.deepcopy(whole.config)
    config.victor = {**config.victor, "registers": count}
    model = VictorLlava(config).eval()
    state = {
        name: value[:count] if "registers" in name or "offsets" in name else value
        for name, value in whole.state_dict().items()
    }
    model.load_state_dict(state)
    return model


@torch.no_grad()
def logits(model):
    return model(**ASK).logits


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_first_registers_are_the_model_that_has_no_others(whole, tmp_path, count):
    folder = victor_folder(tmp_path / "whole", whole)
    expected = logits(few(whole, count))

    ours = VictorLlava.from_pretrained(folder, registers=count)
    stock = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, registers=count
    )

    assert logits(ours).equal(expected)
    assert logits(stock).equal(expected)
    assert ours.config.victor["registers"] == stock.config.victor["registers"] == count
    ours.save_pretrained(tmp_path / "few")
    again = VictorLlava.from_pretrained(tmp_path / "few")
    assert again.victor.registers.weight.shape == (count, 32)
    assert logits(again).equal(expected)


def test_for_a_while_a_model_uses_fewer_and_then_all_again(whole):
    before = logits(whole)

    whole.victor.use(2)
    within = logits(whole)
    whole.victor.use(5)

    assert within.equal(logits(few(whole, 2)))
    assert not within.equal(before)
    assert logits(whole).equal(before)


def test_only_registers_in_use_have_a_gradient():
    model = victor_llava(registers=5)
    model.victor.use(2)
    model(**ASK).logits.sum().backward()
    gradient = model.victor.registers.weight.grad
    assert gradient[:2].abs().sum(dim=1).all()
    assert not gradient[2:].any()


@pytest.mark.parametrize("count", [0, -1, 6])
def test_no_more_than_there_are_can_be_taken(whole, tmp_path, count):
    folder = victor_folder(tmp_path / "whole", whole)
    with pytest.raises(ValueError, match=rf"registers={count}: the model has 5.\n  fix: choose 1"):
        VictorLlava.from_pretrained(folder, registers=count)
