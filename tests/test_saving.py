"""The folder of a trained model: what changes, what stays, and what it takes of the disk.

Faults planted and caught: a merged shard written through its hard link into the source, an update
merged into rounded weights, a size without the shards that are rewritten, trained embeddings left
out where they are tied.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.finetuning import prepare, recipe, run
from tests.tiny import tiny_picture, tiny_processor
from tests.victor_models import victor_folder
from victorctl import checkpoint, folders, saving, weights
from victorctl.finetune import finetune
from victorctl.recipe import Run


@pytest.fixture
def made(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def model(made):
    return made[0]


@pytest.fixture
def data(made):
    return made[1]


def base_bytes(folder):
    return {file.name: file.read_bytes() for file in checkpoint.weight_files(folder)}


@pytest.mark.parametrize(
    ("rung", "layers"),
    [("registers", "all"), ("deep", "all"), ("register-lora", "early"), ("register-lora", "all")],
)
def test_intact_rungs_change_victor_tensors_only(tmp_path, model, data, rung, layers):
    result = finetune(model, recipe=recipe(data, rung, layers=layers), run=run(tmp_path / "out"))

    assert result["base_intact"] is True
    assert base_bytes(tmp_path / "out") == base_bytes(model)
    before, after = (load_file(f / "victor.safetensors") for f in (model, tmp_path / "out"))
    assert not torch.equal(before["victor.registers.weight"], after["victor.registers.weight"])
    adapted = {name.split(".")[2] for name in after if "adapters" in name}
    assert (
        adapted
        == {"registers": set(), "deep": set(), "early": {"0", "1"}, "all": set("012345")}[
            layers if rung == "register-lora" else rung
        ]
    )
    assert ("victor.offsets.1.weight" in after) == (rung == "deep")
    assert result["trainable_parameters"] == sum(t.numel() for t in after.values())


def test_the_trained_folder_loads_as_both_models(tmp_path, model, data):
    finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))
    inputs = tiny_processor()(
        text="<image> what is this ?", images=tiny_picture(), return_tensors="pt"
    )

    def load(folder, **how):
        loaded, info = AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, **how
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        return loaded(**inputs).logits

    assert torch.equal(load(tmp_path / "out"), load(model))
    trained = load(tmp_path / "out", trust_remote_code=True)
    assert torch.equal(
        trained, checkpoint.load(tmp_path / "out", Run(device="cpu"))(**inputs).logits
    )
    assert not torch.allclose(trained, load(model, trust_remote_code=True), atol=1e-3)


def test_lora_is_merged_into_the_shards_it_touches_and_the_source_stays(tmp_path, model, data):
    before = base_bytes(model)
    result = finetune(
        model, recipe=recipe(data, "lora", learning_rate=1e-2), run=run(tmp_path / "out")
    )

    assert result["base_intact"] is False
    assert base_bytes(model) == before
    old, new = (
        {k: v for f in checkpoint.weight_files(d) for k, v in load_file(f).items()}
        for d in (model, tmp_path / "out")
    )
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    linears = {
        name
        for name in old
        if "language_model" in name and ".layers." in name and old[name].dim() == 2
    }
    assert changed == linears
    assert not any("lora" in name for name in new)
    assert (
        json.loads((tmp_path / "out" / "victor.json").read_text())["stages"][-1]["base_intact"]
        is False
    )


def test_lora_is_added_to_the_weights_as_stored_not_as_loaded(tmp_path, model, data):
    settings = recipe(data, "lora", steps=1, learning_rate=1e-4, warmup=0.0)
    finetune(model, recipe=settings, run=run(tmp_path / "out", dtype="bf16"))

    old, new = (
        {k: v for f in checkpoint.weight_files(d) for k, v in load_file(f).items()}
        for d in (model, tmp_path / "out")
    )
    (name,) = (
        name
        for name in old
        if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name
    )
    moved = (new[name] - old[name]).abs().max()
    rounding = (old[name].bfloat16().float() - old[name]).abs().max()
    assert 0 < moved < 0.1 * rounding


def predicted(network):
    inputs = tiny_processor()(
        text="<image> what is this ?", images=tiny_picture(), return_tensors="pt"
    )
    with torch.no_grad():
        return network(**inputs).logits


@pytest.mark.parametrize(
    ("text", "rung", "more"),
    [
        ("llama", "lora", {"dora": True}),
        ("llama", "lora-early+projector", {"rslora": True}),
        ("llama", "full+projector", {}),
        ("gemma", "full", {}),  # embeddings and output layer are one, and stored once
        ("mixtral", "full", {}),  # experts are stored one by one, and are one tensor in memory
    ],
)
def test_what_is_written_predicts_what_was_trained(tmp_path, monkeypatch, text, rung, more):
    def write(source, folder, network):
        wanted.append(predicted(network))
        return save(source, folder, network)

    model, data = prepare(tmp_path, monkeypatch, text=text)
    wanted, save = [], saving.save
    monkeypatch.setattr(saving, "save", write)
    faster = {"learning_rate": 2e-2, "base_learning_rate": 2e-2, "steps": 3, **more}
    finetune(model, recipe=recipe(data, rung, **faster), run=run(tmp_path / "out"))

    both = (model, tmp_path / "out")
    before, after = (predicted(checkpoint.load(each, Run(device="cpu"))) for each in both)
    torch.testing.assert_close(after, wanted[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-2)
    names = [
        {name for file in checkpoint.weight_files(folder) for name in load_file(file)}
        for folder in both
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("rung", ["lora", "full+projector", "registers+projector"])
def test_a_base_in_bfloat16_is_trained_in_float32_and_written_as_it_was(tmp_path, made, rung):
    model, data = made
    half = tmp_path / "half"
    network = checkpoint.load(model, Run(device="cpu", dtype="bf16"))
    victor_folder(half, network)
    finetune(half, recipe=recipe(data, rung), run=run(tmp_path / "out"))

    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        for name, value in load_file(file).items():
            assert value.dtype == torch.bfloat16, name


@pytest.mark.parametrize("rung", ["registers", "lora"])
@pytest.mark.parametrize("linkable", [True, False])
def test_the_size_is_that_of_the_files_that_are_no_links(  # noqa: PLR0913
    tmp_path, model, data, monkeypatch, rung, linkable
):
    def measured(*arguments):
        sizes.append(size(*arguments))
        return sizes[0]

    sizes, size = [], saving.size
    monkeypatch.setattr(saving, "size", measured)
    if not linkable:
        monkeypatch.setattr(folders, "on_one_disk", lambda *_: False)
        monkeypatch.setattr(weights, "_hard_link", lambda *_: False)
    finetune(model, recipe=recipe(data, rung, steps=1), run=run(tmp_path / "out"))

    shards = [file.stat() for file in checkpoint.weight_files(tmp_path / "out")]
    written = sum(shard.st_size for shard in shards if shard.st_nlink == 1)
    assert (written > 0) == (rung == "lora" or not linkable)
    assert sizes == [written + 3 * 32 * 4]  # and the registers
