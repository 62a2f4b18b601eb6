"""Originals that come in parts: a vision tower apart, a LoRA, a projector alone.

Faults planted and caught: layers of a text tower taken for the vision tower's; SigLIP's last layer
kept, or counted; a scale without the rank, or its root; an update at the wrong rows of a block; the
base's projector in place of the trained one; a folder of this machine that a published model names.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests import originals
from tests.converting import QUICK, left, run
from tests.hub import COMMIT, serving
from tests.loras import write_base, write_lora
from victorctl import weights
from victorctl.errors import VictorError
from victorctl.inspect import inspect
from victorctl.layouts.translation import translate
from victorctl.sections import ConvertSection
from victorctl.sources import open_source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of peft
]


def assert_is(out, expected):
    """Hold a folder to a model in memory."""
    model, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    expected = originals.grown(expected, 128).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# ---- Vision towers -------------------------------------------------------------------------------


def test_a_tower_that_is_not_there_is_taken_from_where_it_is_said_to_be(tmp_path):
    expected = originals.native()
    source = originals.write_original(tmp_path / "llava", expected, tower=False, pickled=True)
    tower = originals.write_tower(tmp_path / "clip", expected)
    result = run(source, tmp_path / "out", flags={"convert.vision_tower": str(tower)})
    assert_is(tmp_path / "out", originals.native())
    assert result["parity"] == {"hashes_equal": True, "max_logit_difference": 0.0}
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["source"]["vision_tower"] == {"name": "clip", "commit": None}
    assert entry["source_files"] == {
        "pytorch_model.bin": weights.sha256(source / "pytorch_model.bin"),
        "clip/model.safetensors": weights.sha256(tower / "model.safetensors"),
    }


def test_of_a_siglip_the_last_layer_and_the_head_are_left_out(tmp_path):
    expected = originals.native("interleave", text="qwen2")
    source = originals.write_original(
        tmp_path / "llava-interleave", expected, "interleave", tower=False
    )
    tower = originals.write_tower(tmp_path / "siglip", expected)
    result = run(source, tmp_path / "out", flags={"convert.vision_tower": str(tower)})
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    found, wanted = (each.model.vision_tower.state_dict() for each in (model, expected))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert result["parity"]["max_logit_difference"] == 0.0
    assert any("seen whole, not in tiles" in remark for remark in result["warnings"])


def test_a_tower_of_its_own_comes_before_one_that_is_given(tmp_path):
    expected = originals.native()
    source = originals.write_original(
        tmp_path / "llava", expected, mm_vision_tower="/cluster/my-clip"
    )
    tower = originals.write_tower(tmp_path / "clip", expected)
    other = {
        name: one + 1 if one.is_floating_point() else one
        for name, one in load_file(tower / "model.safetensors").items()
    }
    save_file(other, tower / "model.safetensors")
    run(source, tmp_path / "out", flags=QUICK | {"convert.vision_tower": str(tower)})
    assert_is(tmp_path / "out", originals.native())


def test_a_tower_in_another_number_format_keeps_it(tmp_path):
    expected = originals.native()
    tower = originals.write_tower(tmp_path / "clip", originals.native().bfloat16())
    source = originals.write_original(tmp_path / "llava", expected, tower=False)
    result = run(source, tmp_path / "out", flags={"convert.vision_tower": str(tower)})
    assert result["parity"] == {"hashes_equal": True, "max_logit_difference": 0.0}
    formats = {
        name.split(".")[0]: tensor.dtype
        for file in (tmp_path / "out").glob("model-*.safetensors")
        for name, tensor in load_file(file).items()
    }
    assert formats.pop("vision_tower") == torch.bfloat16
    assert set(formats.values()) == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


# ---- LoRA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pickled", "settings"), [(True, {}), (False, {"use_rslora": True})])
def test_a_lora_is_merged_as_peft_does_and_brings_its_projector(
    tmp_path, monkeypatch, pickled, settings
):
    monkeypatch.setattr("victorctl.layouts.files.CHUNK", 1000)  # several blocks for a weight
    expected = originals.native()
    base = write_base(tmp_path / "vicuna", expected, shards=2, pickled=pickled)
    merged = write_lora(tmp_path / "llava-lora", expected, base, pickled=pickled, **settings)
    tower = originals.write_tower(tmp_path / "clip", expected)

    result = run(
        tmp_path / "llava-lora", tmp_path / "out", flags={"convert.vision_tower": str(tower)}
    )

    assert (result["layout"], result["base_intact"]) == ("original-lora", True)
    assert result["parity"]["hashes_equal"] is False  # merged, not copied
    assert result["parity"]["max_logit_difference"] < 1e-3
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    found, plain = (
        model.model.language_model.state_dict(),
        expected.model.language_model.state_dict(),
    )
    for name, tensor in merged.model.state_dict().items():
        found_rows = found[name][: len(tensor)]
        torch.testing.assert_close(found_rows, tensor, rtol=0, atol=1e-5)
        changed = name.endswith("_proj.weight")
        assert torch.equal(found_rows, plain[name]) is not changed, name
    for name, tensor in expected.model.multi_modal_projector.state_dict().items():
        assert torch.equal(model.model.multi_modal_projector.state_dict()[name], tensor)
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["source"]["base"] == {"name": "vicuna", "commit": None}
    assert len(entry["source_files"]) == 5  # two of the base, projector, tower, adapter


def test_what_a_lora_trained_besides_takes_the_place_of_the_bases(tmp_path):
    before, after = originals.native(), originals.native()
    with torch.no_grad():
        for parameter in after.model.multi_modal_projector.parameters():
            parameter.add_(1)
    base = originals.write_original(tmp_path / "llava", before)
    write_lora(tmp_path / "llava-lora", after, base)
    run(tmp_path / "llava-lora", tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for name, tensor in after.model.multi_modal_projector.state_dict().items():
        assert torch.equal(model.model.multi_modal_projector.state_dict()[name], tensor)


@pytest.mark.parametrize("given", [False, True])
def test_a_tower_that_was_trained_besides_comes_before_any_that_is_given(tmp_path, given):
    before, after = originals.native(), originals.native()
    with torch.no_grad():
        for parameter in after.model.vision_tower.parameters():
            parameter.add_(0.1)
    base = write_base(tmp_path / "vicuna", before)
    write_lora(tmp_path / "llava-lora", after, base, besides=("mm_", "vision_tower"))
    tower = str(originals.write_tower(tmp_path / "clip", before)) if given else None

    result = run(tmp_path / "llava-lora", tmp_path / "out", flags={"convert.vision_tower": tower})

    assert result["parity"]["max_logit_difference"] < 1e-3
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for name, tensor in after.model.vision_tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name


def test_the_end_of_a_row_that_was_trained_besides_need_not_be_in_the_base(tmp_path):
    expected = originals.native("next")
    base = write_base(tmp_path / "vicuna", expected)
    tower = originals.write_tower(tmp_path / "clip", expected)
    folder = tmp_path / "llava-lora"
    write_lora(folder, expected, base, kind="next", besides=("mm_", "image_newline"))

    result = run(folder, tmp_path / "out", flags={"convert.vision_tower": str(tower)})

    assert result["parity"]["max_logit_difference"] < 1e-3
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(model.model.image_newline, expected.model.image_newline)


def test_the_base_may_be_given_and_is_looked_for_where_the_lora_says(tmp_path):
    expected = originals.native()
    base = write_base(tmp_path / "vicuna", expected)
    tower = originals.write_tower(tmp_path / "clip", expected)
    write_lora(tmp_path / "llava-lora", expected, "/somewhere/else/vicuna")
    flags = QUICK | {"convert.vision_tower": str(tower)}
    sentence = (
        "llava-lora: its language model, base_model_name_or_path in adapter_config.json, is not "
        "found: /somewhere/else/vicuna: no such folder\n  fix: add --base SOURCE"
    )
    with pytest.raises(VictorError, match=sentence):
        run(tmp_path / "llava-lora", tmp_path / "out", flags=flags)
    run(tmp_path / "llava-lora", tmp_path / "out", flags=flags | {"convert.base": str(base)})
    assert inspect_layout(tmp_path / "llava-lora", base) == "original-lora"


def inspect_layout(folder, base):
    adapter = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(adapter | {"base_model_name_or_path": str(base)})
    )
    return inspect(str(folder))["layout"]


def test_parts_are_fetched_from_the_hub_only_when_they_are_read(tmp_path, monkeypatch):
    expected = originals.native()
    models = {
        "lmsys/vicuna": write_base(tmp_path / "vicuna", expected, pickled=True),
        "openai/clip": originals.write_tower(tmp_path / "clip", expected),
        "ada/lora": tmp_path / "lora",
    }
    write_lora(tmp_path / "lora", expected, "lmsys/vicuna")
    flags = QUICK | {"convert.vision_tower": "openai/clip"}
    with serving(monkeypatch, tmp_path / "cache", models) as hub:
        dry = run("ada/lora", tmp_path / "out", flags=flags, dry_run=True)
        assert not [name for name in hub.fetched if name.endswith((".bin", ".safetensors"))]
        result = run("ada/lora", tmp_path / "out", flags=flags)
    assert dry["layout"] == result["layout"] == "original-lora"
    (entry,) = json.loads((tmp_path / "out" / "victor.json").read_text())["stages"]
    assert entry["source"]["base"] == {"name": "lmsys/vicuna", "commit": COMMIT}
    assert set(entry["source_files"]) == {
        "lmsys/vicuna/pytorch_model.bin",
        "openai/clip/model.safetensors",
        "non_lora_trainables.bin",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_dora": True}, "use_dora True is not a plain LoRA's\n  fix: merge it"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not a plain"),
        ({"bias": "all"}, "bias 'all' is not a plain"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"base_model_name_or_path": None}, r"names no language model that can be fetched \(''\)"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, change, sentence):
    expected = originals.native()
    base = write_base(tmp_path / "vicuna", expected)
    write_lora(tmp_path / "llava-lora", expected, base)
    file = tmp_path / "llava-lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(VictorError, match=sentence):
        run(tmp_path / "llava-lora", tmp_path / "out")
    assert "out" not in left(tmp_path)


def test_an_update_that_does_not_fit_the_base_is_refused(tmp_path):
    expected = originals.native()
    base = originals.write_original(tmp_path / "llava", expected)
    write_lora(tmp_path / "llava-lora", expected, base)
    file = tmp_path / "llava-lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: torch.ones(4, 33)}, file)
    with pytest.raises(
        VictorError, match=r"the update of model\.layers\.0.* does not fit the weight"
    ):
        run(tmp_path / "llava-lora", tmp_path / "out")
    save_file({key: one for key, one in tensors.items() if key != name}, file)
    with pytest.raises(VictorError, match="has no other half"):
        run(tmp_path / "llava-lora", tmp_path / "out")
    twelfth = name.replace("layers.0", "layers.12")
    both = {twelfth: tensors[name].clone(), twelfth.replace("lora_A", "lora_B"): torch.ones(32, 4)}
    save_file(tensors | both, file)
    with pytest.raises(VictorError, match=r"it updates model\.layers\.12\..* does not have"):
        run(tmp_path / "llava-lora", tmp_path / "out")


# ---- A projector alone ---------------------------------------------------------------------------


def write_projector(folder, model, **config):
    state = originals.original_state(model)
    folder.mkdir()
    torch.save(
        {name: one for name, one in state.items() if "mm_" in name}, folder / "mm_projector.bin"
    )
    made = originals.original_config(model, "llava", **config)
    (folder / "config.json").write_text(json.dumps(made))


def test_a_projector_alone_is_put_between_its_tower_and_its_language_model(tmp_path):
    expected = originals.native()
    base = write_base(tmp_path / "vicuna", expected)
    write_projector(tmp_path / "projector", expected, _name_or_path=str(base))
    tower = originals.write_tower(tmp_path / "clip", expected)
    result = run(
        tmp_path / "projector", tmp_path / "out", flags={"convert.vision_tower": str(tower)}
    )
    assert_is(tmp_path / "out", originals.native())
    assert result["layout"] == "original-projector"
    assert result["parity"] == {"hashes_equal": True, "max_logit_difference": 0.0}


def test_a_published_model_chooses_no_folder_of_this_machine(tmp_path, monkeypatch):
    expected = originals.native()
    base = write_base(tmp_path / "private", expected)
    write_projector(tmp_path / "projector", expected, _name_or_path=str(base))
    with serving(monkeypatch, tmp_path / "cache", {"eve/projector": tmp_path / "projector"}):
        with pytest.raises(VictorError, match=r"names no language model .*\n  fix: add --base"):
            run("eve/projector", tmp_path / "out")
        settings = ConvertSection(base=str(base))
        assert translate(open_source("eve/projector"), settings).kind == "original-projector"


# ---- Flags that have no use ----------------------------------------------------------------------


def test_a_whole_original_takes_no_base(tmp_path):
    source = originals.write_original(tmp_path / "llava", originals.native())
    with pytest.raises(VictorError, match="--base x: llava holds a language model of its own"):
        run(source, tmp_path / "out", flags=QUICK | {"convert.base": "x"})
