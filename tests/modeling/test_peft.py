"""A user's own LoRA on top of a Victor model, whose own updates still act exactly once.

Faults planted and caught: the updates hooked to peft's wrapper too; saving writes the whole model
where peft's adapter is asked for; an adapter's folder taken for one that was not converted;
`victor` wrapped.
"""

import copy
import json

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.integrations.peft import MIN_PEFT_VERSION

from tests.modeling.laws import assert_close
from tests.victor_models import BATCH, inputs, labelled, logits
from victorctl.modeling_victor import VictorLlava

# peft asks transformers by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LINEARS = ("self_attn.q_proj", "mlp.down_proj")
LORA = {"r": 2, "lora_alpha": 6, "target_modules": r".*language_model.*(q_proj|down_proj)"}


@pytest.fixture(scope="module")
def loaded(folder):
    return VictorLlava.from_pretrained(folder)


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded)


def with_lora(model, **more):
    """Put a LoRA on the model that is not zero."""
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False, **more))


@torch.no_grad()
def merged_by_hand(model, tuned):
    """Add up @ down * alpha / r to the weights of a copy of the model."""
    other, state = copy.deepcopy(model), tuned.state_dict()
    for number, layer in enumerate(other.model.language_model.layers):
        for name in LINEARS:
            key = f"base_model.model.model.language_model.layers.{number}.{name}.lora"
            down, up = (state[f"{key}_{side}.default.weight"] for side in "AB")
            layer.get_submodule(name).weight.add_(up @ down, alpha=6 / 2)
    return other


def train(model, steps=3):
    batch = labelled(inputs(*BATCH))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(learned, lr=0.02), []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_updates_at_registers_act_once_under_a_lora(model):
    before = copy.deepcopy(model)
    tuned = with_lora(model)
    by_hand = merged_by_hand(before, tuned)

    assert_close(logits(tuned), logits(by_hand))
    with model.registers_off(), by_hand.registers_off():
        assert_close(logits(tuned), logits(by_hand))
    assert_close(logits(tuned), logits(by_hand))  # switched on again, not twice
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), logits(before))


def test_a_lora_is_trained_saved_and_loaded_and_nothing_else_moves(model, loaded, tmp_path):
    before = copy.deepcopy(model.state_dict())
    tuned = get_peft_model(model, LoraConfig(**LORA))

    losses = train(tuned)
    tuned.save_pretrained(tmp_path)

    assert losses[-1] < losses[0]
    after = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): tensor
        for name, tensor in tuned.state_dict().items()
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    other = PeftModel.from_pretrained(copy.deepcopy(loaded), tmp_path)
    assert torch.equal(logits(other), logits(tuned))


def test_a_merged_lora_is_saved_as_a_folder_of_two_models(model, loaded, tmp_path):
    tuned = with_lora(model)
    by_hand = merged_by_hand(loaded, tuned)

    tuned.merge_and_unload().save_pretrained(tmp_path)

    ours, report = VictorLlava.from_pretrained(tmp_path, output_loading_info=True)
    base, base_report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert not any(base_report.values())
    assert_close(logits(ours), logits(by_hand))
    with ours.registers_off():
        assert torch.equal(logits(ours), logits(base))
    assert json.loads((tmp_path / "config.json").read_text())["victor"] == model.config.victor


def test_registers_are_trained_and_saved_with_a_lora_where_it_says_so(model, loaded, tmp_path):
    tuned = with_lora(model, modules_to_save=["registers"])

    train(tuned)
    tuned.save_pretrained(tmp_path)

    saved = load_file(tmp_path / "adapter_model.safetensors")
    registers = saved["base_model.model.victor.registers.weight"]
    assert not torch.equal(registers, loaded.victor.registers.weight)
    other = PeftModel.from_pretrained(copy.deepcopy(loaded), tmp_path)
    assert torch.equal(logits(other), logits(tuned))
    merged = other.merge_and_unload()
    assert_close(logits(merged), logits(tuned))
    assert torch.equal(merged.victor.registers.weight, registers)


def test_updates_at_registers_are_trained_beside_a_lora(model):
    tuned = with_lora(model)
    model.victor.requires_grad_(True)
    before = copy.deepcopy(model.victor.state_dict())

    losses = train(tuned)

    assert losses[-1] < losses[0]
    assert not any(map(torch.equal, model.victor.state_dict().values(), before.values()))


def test_all_that_is_victors_cannot_be_wrapped_at_once(model):
    # The layers hold what is there now: a copy would be trained, and never asked.
    sentence = (
        r"cannot be put into a ModulesToSaveWrapper.*\n  fix: modules_to_save=\['registers'\]"
    )
    with pytest.raises(ValueError, match=sentence):
        with_lora(model, modules_to_save=["victor"])


@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"transformers' own adapters need peft {MIN_PEFT_VERSION}",
)
def test_an_adapter_of_transformers_own_is_saved_alone_and_brings_its_model(model, tmp_path):
    model.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    expected = logits(model)

    model.save_pretrained(tmp_path)

    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
    }
    trusted = {"trust_remote_code": True}
    for load, how in ((VictorLlava, {}), (AutoModelForImageTextToText, trusted)):
        other = load.from_pretrained(tmp_path, **how)
        assert type(other).__name__ == "VictorLlava"
        assert torch.equal(logits(other), expected)
