"""A base with quantised weights: Victor's own stay as they are, and act on the rounded base.

Faults planted and caught: Victor's tensors in the base's file; no hooks on the Linears that take
the place of others.
"""

import pytest
import torch
from transformers import (
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    TorchAoConfig,
)

from tests.modeling.laws import assert_close
from tests.victor_models import BATCH, answers, inputs, labelled, logits
from victorctl.modeling_victor import VictorLlava

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the libraries, about a CPU
]
REASON = "needs quantising libraries: pip install '.[ecosystem]'"


def eight_bits():
    pytest.importorskip("bitsandbytes", reason=REASON)
    return BitsAndBytesConfig(load_in_8bit=True)


def four_bits():
    pytest.importorskip("bitsandbytes", reason=REASON)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def torchao_weights():
    torchao = pytest.importorskip("torchao.quantization", reason=REASON)
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


WAYS = [eight_bits, four_bits, torchao_weights]
WEIGHTS_ONLY = [four_bits, torchao_weights]  # the first rounds what enters a Linear too


def rounded(linear):
    """Read a quantised weight back."""
    if hasattr(linear.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    weight = linear.weight
    return weight.dequantize() if hasattr(weight, "dequantize") else weight


def load(folder, way, cls=VictorLlava):
    return unpacked(cls.from_pretrained(folder, quantization_config=way(), device_map="cpu"))


def unpacked(model):
    """Keep bitsandbytes from packing 4-bit weights for some CPUs: it fails if they are narrow."""
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model


@torch.no_grad()
def with_rounded_weights(folder, model):
    """Load the model as it is, and round its weights as the quantised one has them."""
    plain = VictorLlava.from_pretrained(folder)
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            plain.get_submodule(name).weight.copy_(rounded(part))
    return plain


@pytest.mark.parametrize("way", WEIGHTS_ONLY)
def test_a_quantised_model_is_the_model_with_rounded_weights(way, folder):
    model = load(folder, way)
    expected = with_rounded_weights(folder, model)
    assert not torch.equal(logits(expected), logits(VictorLlava.from_pretrained(folder)))

    assert_close(logits(model), logits(expected), 1e-4)
    assert all(map(torch.equal, model.victor.parameters(), expected.victor.parameters()))
    assert torch.equal(answers(model), answers(expected))


@pytest.mark.parametrize("way", WEIGHTS_ONLY)
def test_registers_and_updates_learn_on_a_quantised_base(way, folder):
    model = load(folder, way)
    expected = with_rounded_weights(folder, model)
    batch = labelled(inputs(*BATCH))

    def gradients(model):
        loss = model(**batch).loss
        return torch.autograd.grad(loss, list(model.victor.parameters()))

    for ours, theirs in zip(gradients(model), gradients(expected), strict=True):
        assert ours.any()
        assert_close(ours, theirs, 1e-3)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_with_registers_off_it_is_the_quantised_base(way, folder):
    model, native = load(folder, way), load(folder, way, LlavaForConditionalGeneration)
    on = logits(model)

    with model.registers_off():
        assert torch.equal(logits(model), logits(native))
    assert torch.equal(logits(model), on)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_updates_at_registers_act_on_quantised_linears(way, folder):
    model = load(folder, way)
    on = logits(model)

    for name, parameter in model.victor.named_parameters():
        if name.endswith(".up"):
            parameter.zero_()

    assert not torch.allclose(logits(model), on, atol=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_model_is_saved_as_a_folder_of_two_models(way, folder, tmp_path):
    model = load(folder, way)

    model.save_pretrained(tmp_path)

    loaded, report = VictorLlava.from_pretrained(
        tmp_path, device_map="cpu", output_loading_info=True
    )
    base, base_report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, device_map="cpu", output_loading_info=True
    )
    assert not any(report.values())
    assert not any(base_report.values())
    assert torch.equal(logits(unpacked(loaded)), logits(model))
    with model.registers_off():
        assert torch.equal(logits(unpacked(base)), logits(model))
