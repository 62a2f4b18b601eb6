"""The finetune stage on tiny models: what it writes, leaves alone, and picks up when interrupted.

Faults planted and caught: a resumed run that forgets the optimiser, a plan that restarts at row 0,
a merged shard written through its hard link into the source, an update merged into rounded weights.
"""

import importlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.tiny import tiny_data, tiny_llava, tiny_picture, tiny_processor
from tests.victor_models import victor_folder, victor_llava
from victorctl import checkpoint, lineage
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.finetune import finetune
from victorctl.recipe import Recipe, Run
from victorctl.training import learning_rate

STAGE = importlib.import_module(
    "victorctl.finetune"
)  # the module; the package's attribute is the function
QUICK = {
    "steps": 6,
    "batch_size": 2,
    "questions": 2,
    "rank": 3,
    "checkpoint_every": 2,
    "warmup": 0.2,
}


@pytest.fixture
def model(tmp_path):
    """A converted tiny model, in several shards."""
    folder = victor_folder(tmp_path / "model", victor_llava(), max_shard_size="40KB")
    assert len(checkpoint.weight_files(folder)) > 1
    lineage.add_stage(
        folder, command="convert", settings={}, parent_sha256="", seed=0, base_intact=True
    )
    return folder


@pytest.fixture(autouse=True)
def _own_teacher_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("victorctl.teacher.HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def data(tmp_path):
    return tiny_data(tmp_path / "data", 5)


def recipe(data, rung="register-lora", seed=0, **train):
    return Recipe(seed=seed, data={"train": str(data)}, train={**QUICK, "rung": rung, **train})


def run(out, **how):
    return Run(out=Path(out), device="cpu", quiet=True, **how)


def base_bytes(folder):
    return {file.name: file.read_bytes() for file in checkpoint.weight_files(folder)}


@pytest.mark.parametrize(
    ("rung", "layers"), [("registers", "all"), ("register-lora", "early"), ("register-lora", "all")]
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
        == {"registers": set(), "early": {"0", "1"}, "all": set("012345")}[
            rung if rung == "registers" else layers
        ]
    )
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


def test_a_finished_run_is_done_again_on_demand(tmp_path, model, data):
    for seed in (0, 1):
        finetune(model, recipe=recipe(data, seed=seed), run=run(tmp_path / "out", overwrite=True))

    assert lineage.read_lineage(tmp_path / "out")["stages"][-1]["seed"] == 1
    assert {path.name for path in tmp_path.glob("*out*")} == {"out"}


def test_the_loss_falls_and_is_drawn(tmp_path, model, data):
    result = finetune(
        model,
        recipe=recipe(data, steps=40, learning_rate=2e-2, checkpoint_every=100),
        run=run(tmp_path / "out"),
    )

    assert result["loss"]["last"] < 0.7 * result["loss"]["first"]
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out" / "loss.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize(
    "stop_after", [1, 3, 5]
)  # before, between and after checkpoints at 2 and 4
@pytest.mark.parametrize("rung", ["register-lora", "lora"])
def test_ctrl_c_and_resume_give_the_weights_of_an_uninterrupted_run(  # noqa: PLR0913
    tmp_path, model, data, monkeypatch, stop_after, rung
):
    settings = recipe(data, rung)
    finetune(model, recipe=settings, run=run(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "hf")  # so that the second run asks the teacher as the first did
    press_ctrl_c_in_step(monkeypatch, stop_after)

    with pytest.raises(KeyboardInterrupt):
        finetune(model, recipe=settings, run=run(tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()
    monkeypatch.undo()
    monkeypatch.setattr("victorctl.teacher.HF_HOME", str(tmp_path / "hf"))
    finetune(model, recipe=settings, run=run(tmp_path / "parts", resume=True))

    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes(), file.name
    assert (tmp_path / "whole/loss.jsonl").read_bytes() == (
        tmp_path / "parts/loss.jsonl"
    ).read_bytes()
    assert not (tmp_path / "parts.training").exists()


def press_ctrl_c_in_step(monkeypatch, number):
    seen = []

    def rate(step, settings):
        seen.append(step)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(step, settings)

    monkeypatch.setattr(STAGE, "learning_rate", rate)


def test_a_crash_goes_on_from_the_last_checkpoint(tmp_path, model, data, monkeypatch):
    finetune(model, recipe=recipe(data), run=run(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "hf")

    def crash(step, settings):
        if step == 5:
            raise RuntimeError("power cut")
        return learning_rate(step, settings)

    monkeypatch.setattr(STAGE, "learning_rate", crash)
    with pytest.raises(RuntimeError):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "parts"))
    monkeypatch.setattr(STAGE, "learning_rate", learning_rate)
    finetune(model, recipe=recipe(data), run=run(tmp_path / "parts", resume=True))

    name = "victor.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_checkpoints_hold_only_what_is_trained(tmp_path, model, data, monkeypatch):
    press_ctrl_c_in_step(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, recipe=recipe(data, "registers"), run=run(tmp_path / "out"))

    names = set(load_file(tmp_path / "out.training/state.safetensors"))
    assert names == {
        f"{kind}.victor.registers.weight" for kind in ("parameter", "exp_avg", "exp_avg_sq")
    }


def test_a_resumed_run_must_be_the_same_run(tmp_path, model, data, monkeypatch):
    press_ctrl_c_in_step(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))

    with pytest.raises(VictorError, match=r"learning_rate was 0\.002, is 0\.01"):
        finetune(
            model, recipe=recipe(data, learning_rate=0.01), run=run(tmp_path / "out", resume=True)
        )
    with pytest.raises(VictorError, match="dtype was float32, is bfloat16"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out", resume=True, dtype="bf16"))
    tiny_data(tmp_path / "data", 6)
    with pytest.raises(VictorError, match="rows of the data was 5, is 6"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out", resume=True))
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(VictorError, match="holds an interrupted run"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))


def test_questions_about_one_picture_share_a_step_and_each_counts_in_a_resumed_run(
    tmp_path, model, data, monkeypatch
):
    records = [record | {"image": "0.png"} for record in json.loads(data.read_text())]
    data.write_text(json.dumps(records))
    asked = []

    def count(self, batch):
        asked.append((len(batch.pictures), len(batch.keys)))
        return forward(self, batch)

    forward = Distillation.forward
    monkeypatch.setattr(Distillation, "forward", count)
    press_ctrl_c_in_step(monkeypatch, 3)
    settings = recipe(data, batch_size=1, questions=3)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, recipe=settings, run=run(tmp_path / "out"))
    assert asked == [(1, 3)] * 3

    data.write_text(json.dumps(records[1:]))
    with pytest.raises(VictorError, match="conversations of the data was 5, is 4"):
        finetune(model, recipe=settings, run=run(tmp_path / "out", resume=True))


def test_the_folder_is_held_until_the_result_is_written(tmp_path, model, data, monkeypatch):
    def write(*arguments):
        with pytest.raises(VictorError, match="another run is under way"):
            finetune(model, recipe=recipe(data), run=run(tmp_path / "out", overwrite=True))
        return whole(*arguments)

    whole = STAGE._write
    monkeypatch.setattr(STAGE, "_write", write)
    finetune(model, recipe=recipe(data, steps=1), run=run(tmp_path / "out"))
    assert {path.name for path in tmp_path.glob("*out*")} == {"out"}


@pytest.mark.parametrize(
    ("how", "settings", "sentence"),
    [
        ({"resume": True}, {}, "no checkpoint to resume"),
        ({}, {"data": {}}, "finetune needs data"),
        ({}, {"data": {"train": "nowhere.json"}}, r"nowhere\.json: no such data"),
    ],
)
def test_what_cannot_be_trained_is_said(  # noqa: PLR0913
    tmp_path, model, data, how, settings, sentence
):
    wrong = Recipe(**({"data": {"train": str(data)}, "train": QUICK} | settings))
    with pytest.raises(VictorError, match=sentence):
        finetune(model, recipe=wrong, run=run(tmp_path / "out", **how))
    assert not (tmp_path / "out").exists()


def test_an_unconverted_model_is_refused(tmp_path, data):
    plain = tiny_llava(tmp_path / "plain")
    with pytest.raises(VictorError, match="not a Victor model yet"):
        finetune(plain, recipe=recipe(data), run=run(tmp_path / "out"))


def test_an_output_that_exists_is_not_touched(tmp_path, model, data):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(VictorError, match="exists already"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))
    with pytest.raises(VictorError, match="is the model itself"):
        finetune(model, recipe=recipe(data), run=run(model, overwrite=True))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, model, data):
    with pytest.raises(
        VictorError, match=r"the loss is inf at step 1\n  fix: lower train.*again with --overwrite"
    ):
        finetune(model, recipe=recipe(data, cross_entropy=1e39), run=run(tmp_path / "out"))
    assert not any(tmp_path.glob("out*"))


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(tmp_path, model, data):
    huge = recipe(data, learning_rate=1e30, clip=1e30, warmup=0.0)  # the loss of step 2 is finite
    with pytest.raises(VictorError, match=r"the gradient's length is (nan|inf) at step 2"):
        finetune(model, recipe=huge, run=run(tmp_path / "out"))
    assert not any(tmp_path.glob("out*"))  # step 2 is one of those that are saved


def test_adapters_of_another_shape_are_refused_and_equal_ones_trained_on(tmp_path, model, data):
    finetune(model, recipe=recipe(data), run=run(tmp_path / "once"))
    finetune(tmp_path / "once", recipe=recipe(data), run=run(tmp_path / "twice"))
    with pytest.raises(VictorError, match="has adapters already"):
        finetune(tmp_path / "once", recipe=recipe(data, rank=4), run=run(tmp_path / "other"))

    stages = lineage.read_lineage(tmp_path / "twice")["stages"]
    assert [stage["command"] for stage in stages] == ["convert", "finetune", "finetune"]
    assert (
        stages[2]["parent_sha256"]
        == stages[1]["weights_sha256"]
        == lineage.weights_sha256(tmp_path / "once")
    )


def test_dry_run_counts_and_writes_nothing(tmp_path, model, data):
    # registers 3 x 32; six layers of rank 3, whose Linears have in + out: q and o 32 + 32,
    # k and v 32 + 16, gate, up and down 32 + 64
    expected = 3 * 32 + 6 * 3 * (64 + 48 + 48 + 64 + 3 * 96)
    result = finetune(model, recipe=recipe(data), run=run(tmp_path / "out", dry_run=True))

    assert result["trainable_parameters"] == expected
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data"}


def test_weights_in_float16_are_not_trained_as_they_are(tmp_path, model, data):
    half = Run(out=tmp_path / "out", device="cpu", dtype="fp16", quiet=True)
    with pytest.raises(VictorError, match="small gradients vanish\n  fix: add --dtype bf16"):
        finetune(model, recipe=recipe(data), run=half)
