"""One folder, two models: stock transformers loads the base, and Victor where code is trusted.

Faults planted and caught: Victor's tensors in the base's file; one index for both; no key
conversion; tensors only reported; an old model.safetensors left; the file not copied; config in the
order of writing; all processes write; sizes of the index in elements; native class named as ours;
no auto_map; hooks only on the first Linears; offsets hooked to one layer on load;
pickled weights are read; a state without registers is written; it is refused too late.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from tests.tiny import tiny_llava
from tests.victor_models import ALL, digests, logits, shared_native, victor_folder, victor_llava
from victorctl import modeling_victor
from victorctl.modeling_victor import VictorLlava, write_config, write_indexes

SHIPPED = Path(modeling_victor.__file__)


def test_the_folder_holds_the_base_and_victor_beside_it(folder, model):
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model.safetensors.index.victor.json",
        "modeling_victor.py",
        "victor.safetensors",
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "modeling_victor.py").read_bytes() == SHIPPED.read_bytes()
    assert load_file(folder / "victor.safetensors").keys() == {
        name for name in model.state_dict() if name.startswith("victor.")
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["model_type"] == "llava"
    assert config["victor"] == model.config.victor
    assert set(config["auto_map"].values()) == {"modeling_victor.VictorLlava"}


def test_both_indexes_name_every_tensor_and_its_size(folder):
    base = load_file(folder / "model.safetensors")
    victor = load_file(folder / "victor.safetensors")
    for name, tensors in (
        ("model.safetensors.index.json", {**base}),
        ("model.safetensors.index.victor.json", {**base, **victor}),
    ):
        index = json.loads((folder / name).read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert index["metadata"]["total_size"] == sum(each.nbytes for each in tensors.values())


def test_the_native_class_loads_the_base_bit_for_bit_and_reports_nothing(folder):
    loaded, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)

    assert not any(report.values())
    native = shared_native(text="llama")
    state = loaded.state_dict()
    assert state.keys() == native.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in native.state_dict().items())
    assert torch.equal(logits(loaded), logits(native))


def test_the_victor_class_loads_the_same_model_and_reports_nothing(folder, model):
    loaded, report = VictorLlava.from_pretrained(folder, output_loading_info=True)

    assert not any(report.values())
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("text", ["llama", "gemma"])  # gemma's embeddings are tied
def test_a_loaded_model_is_saved_byte_for_byte(text, tmp_path):
    first = victor_folder(tmp_path / "first", victor_llava(text, **ALL))

    second = victor_folder(tmp_path / "second", VictorLlava.from_pretrained(first))

    assert digests(second) == digests(first)


@pytest.mark.parametrize("sizes", [("1GB", "60KB"), ("60KB", "1GB"), ("60KB", "30KB")])
def test_saving_over_a_folder_leaves_nothing_of_the_old_one(sizes, tmp_path):
    old, new = sizes
    victor_llava(registers=5, **ALL).save_pretrained(tmp_path, max_shard_size=old)
    model = victor_llava(**ALL)
    with torch.no_grad():
        model.lm_head.weight.add_(1)

    model.save_pretrained(tmp_path, max_shard_size=new)

    assert torch.equal(logits(VictorLlava.from_pretrained(tmp_path)), logits(model))
    base = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(base.lm_head.weight, model.lm_head.weight)


def test_a_model_can_be_saved_where_it_was_loaded(tmp_path):
    model = victor_llava(**ALL)
    model.save_pretrained(tmp_path)
    loaded = VictorLlava.from_pretrained(tmp_path)
    before = digests(tmp_path)

    loaded.save_pretrained(tmp_path)

    assert digests(tmp_path) == before
    assert torch.equal(logits(loaded), logits(model))


def test_a_model_that_lies_on_the_disk_computes_and_is_saved_like_any_other(tmp_path):
    first = victor_folder(tmp_path / "first", victor_llava(**ALL))
    here = ("vision_tower", "multi_modal_projector", "language_model.embed_tokens")
    here += ("language_model.norm", "language_model.rotary_emb")
    layers = [f"model.language_model.layers.{index}" for index in range(6)]
    places = dict.fromkeys([f"model.{name}" for name in here] + layers[:3] + ["lm_head"], "cpu")
    places |= dict.fromkeys([*layers[3:], "victor"], "disk")
    model = VictorLlava.from_pretrained(
        first, device_map=places, offload_folder=tmp_path / "offload"
    )
    assert {parameter.device.type for parameter in model.victor.parameters()} == {"meta"}

    assert torch.equal(logits(model), logits(VictorLlava.from_pretrained(first)))
    with pytest.warns(UserWarning, match="offloaded modules"):  # of memory, and from transformers
        second = victor_folder(tmp_path / "second", model)

    assert digests(second) == digests(first)


def test_a_file_that_is_not_the_models_does_not_become_part_of_it(tmp_path):
    model = victor_llava()
    save_file({"lora": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")

    model.save_pretrained(tmp_path)

    for load in (VictorLlava, LlavaForConditionalGeneration):
        assert not any(load.from_pretrained(tmp_path, output_loading_info=True)[1].values())


def test_only_the_main_process_writes(tmp_path):
    victor_llava().save_pretrained(tmp_path)
    before = digests(tmp_path)

    other = victor_llava(registers=5)
    other.save_pretrained(tmp_path, is_main_process=False)
    other.save_pretrained(tmp_path, is_main_process=False, state_dict={})  # as shards are gathered

    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("named", "count"),
    [
        (lambda name: None if name.startswith("victor.") else name, 0),
        (lambda name: f"_orig_mod.{name}", 0),
        (lambda name: None if "registers" in name else name, 86),
    ],
    ids=["filtered", "compiled", "without one"],
)
def test_a_state_without_all_of_victors_tensors_is_refused_before_anything_is_touched(
    model, named, count, tmp_path
):
    victor_llava(registers=5).save_pretrained(tmp_path / "old", max_shard_size="60KB")
    before, state = digests(tmp_path / "old"), model.state_dict()
    state = {named(name): tensor for name, tensor in state.items() if named(name)}
    sentence = (
        rf"has {count} of Victor's 87 tensors, .*\n  fix: pass names as in model.state_dict\(\), "
        r"such as victor\.adapters\.0\.linears\.mlp-down_proj\.down, or no state_dict"
    )

    for place in ("old", "new"):
        with pytest.raises(ValueError, match=sentence):
            model.save_pretrained(tmp_path / place, state_dict=state)

    assert digests(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives_the_folder(dtype, tmp_path):
    model = victor_llava(**ALL).to(dtype)

    loaded = VictorLlava.from_pretrained(victor_folder(tmp_path, model))

    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.config.dtype == dtype
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]
    for file in ("model.safetensors", "victor.safetensors"):
        assert {tensor.dtype for tensor in load_file(tmp_path / file).values()} == {dtype}


def test_a_folder_loads_in_another_number_format_and_says_so_when_saved(folder, tmp_path):
    model = VictorLlava.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    model.save_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert VictorLlava.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_float32_registers_leave_the_base_in_half_precision(tmp_path):
    model = victor_llava().bfloat16()
    model.victor.float()

    model.save_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    base = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in base.values()} == {torch.bfloat16}


@pytest.mark.parametrize("shard", ["1GB", "60KB"])
def test_a_folder_under_the_hubs_names_loads_too(shard, tmp_path):
    # As llava-hf/llava-1.5-7b-hf names its tensors, which no class has in memory.
    native, victor = shared_native(text="llama"), victor_llava(**ALL)
    tiny_llava(tmp_path, max_shard_size=shard)
    for file in tmp_path.glob("model*.safetensors"):
        save_file({hub_name(name): part for name, part in load_file(file).items()}, file)
    for index in tmp_path.glob("*.index.json"):
        index.unlink()
    own = {name: part for name, part in victor.state_dict().items() if name.startswith("victor.")}
    save_file(own, tmp_path / "victor.safetensors")
    write_indexes(tmp_path, sorted(file.name for file in tmp_path.glob("model*.safetensors")))
    write_config(
        tmp_path, victor.config.victor, "LlavaForConditionalGeneration", VictorLlava.__name__
    )
    names = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert "language_model.model.layers.0.mlp.up_proj.weight" in names
    assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in names

    base, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    loaded, own_report = VictorLlava.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values())
    assert not any(own_report.values())
    assert torch.equal(logits(base), logits(native))
    assert torch.equal(logits(loaded), logits(victor))


def hub_name(name):
    name = name.removeprefix("model.")
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    for part, inner in (("language_model.", "model."), ("vision_tower.", "vision_model.")):
        rest = name.removeprefix(part)
        if name.startswith(part) and not rest.startswith(("lm_head.", inner)):
            return f"{part}{inner}{rest}"
    return name


# ---- Linears that are replaced while a folder is loaded ------------------------------------------


class Swapped(torch.nn.Linear):
    """Stands for a quantised Linear."""


class Swap(QuantizationConfigMixin):
    def __init__(self):
        self.quant_method = "swap"


class Swapping(HfQuantizer):
    """Puts other Linears in the place of the text model's, as bitsandbytes does."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        text = model.model.language_model
        linears = [name for name, part in text.named_modules() if isinstance(part, torch.nn.Linear)]
        for name in linears:
            old = text.get_submodule(name)
            with torch.device("meta"):
                new = Swapped(old.in_features, old.out_features, bias=old.bias is not None)
            text.set_submodule(name, new)

    def is_serializable(self):
        return False

    def is_trainable(self):
        return False


def test_adapters_act_on_linears_that_quantisation_put_in_the_place_of_others(
    folder, model, monkeypatch
):
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "swap", Swapping)

    loaded = VictorLlava.from_pretrained(folder, quantization_config=Swap())

    assert isinstance(loaded.model.language_model.layers[0].mlp.up_proj, Swapped)
    assert torch.equal(logits(loaded), logits(model))


# ---- Tensors that are not as they should be ------------------------------------------------------


def edited(folder, file, edit):
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)
    write_indexes(folder, ["model.safetensors"])


@pytest.mark.parametrize("file", ["victor.safetensors", "model.safetensors"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop(max(tensors)), "missing_keys"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected_keys.*extra"),
    ],
    ids=["missing", "extra"],
)
def test_a_tensor_too_few_or_too_many_is_an_error(file, edit, said, tmp_path):
    folder = victor_folder(tmp_path, victor_llava(**ALL))
    edited(folder, file, edit)

    with pytest.raises(ValueError, match=rf"(?s)does not hold this model: .*{said}.*\n  fix: "):
        VictorLlava.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    folder = victor_folder(tmp_path, victor_llava())
    edited(
        folder,
        "victor.safetensors",
        lambda tensors: tensors.update({"victor.registers.weight": torch.zeros(2, 32)}),
    )

    with pytest.raises(ValueError, match=r"does not hold .*mismatched.*victor.registers.weight"):
        VictorLlava.from_pretrained(folder)


def test_weights_that_could_run_code_are_not_read(tmp_path):
    folder = victor_folder(tmp_path, victor_llava())
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.victor.bin")
    (folder / "model.safetensors.index.victor.json").unlink()

    with pytest.raises(OSError, match=r"no file named model\.victor\.safetensors found"):
        VictorLlava.from_pretrained(folder)
