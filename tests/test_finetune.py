"""The finetune stage on tiny models: what it writes, leaves alone, and picks up when interrupted.

Faults planted and caught: a resumed run that forgets the optimiser, a plan that restarts at row 0,
data that was edited between a run and its continuation, kept predictions where states are matched.
"""

import hashlib
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.finetuning import prepare, recipe, run
from tests.tiny import tiny_data, tiny_model
from victorctl import checkpoint, lineage, loop, saving
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.finetune import finetune
from victorctl.training import learning_rate


@pytest.fixture
def made(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def model(made):
    return made[0]


@pytest.fixture
def data(made):
    return made[1]


def test_a_finished_run_is_done_again_on_demand(tmp_path, model, data):
    for seed in (0, 1):
        finetune(model, recipe=recipe(data, seed=seed), run=run(tmp_path / "out", overwrite=True))

    assert lineage.read_lineage(tmp_path / "out")["stages"][-1]["seed"] == 1
    assert {path.name for path in tmp_path.glob("*out*")} == {"out"}


def test_a_short_run_tells_its_first_loss_from_its_last(tmp_path, model, data):
    result = finetune(model, recipe=recipe(data, steps=3), run=run(tmp_path / "out"))

    lines = (tmp_path / "out" / "loss.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert result["loss"] == {"first": losses[0], "last": losses[2]}


def test_a_base_that_was_changed_behind_the_record_is_not_called_intact(tmp_path, model, data):
    file = checkpoint.weight_files(model)[0]
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))

    result = finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))

    assert result["base_intact"] is False
    assert not lineage.base_intact(tmp_path / "out")


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
    "stop_after", [1, pytest.param(3, marks=pytest.mark.slow), 5]
)  # before, between and after checkpoints at 2 and 4
@pytest.mark.parametrize("rung", ["register-lora", "lora"])
def test_ctrl_c_and_resume_give_the_weights_of_an_uninterrupted_run(  # noqa: PLR0913
    tmp_path, model, data, monkeypatch, stop_after, rung
):
    settings = recipe(data, rung, elastic=True)
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


@pytest.mark.parametrize("elastic", [True, False])
def test_a_model_says_whether_fewer_registers_will_do(tmp_path, model, data, elastic):
    finetune(model, recipe=recipe(data, steps=2, elastic=True), run=run(tmp_path / "one"))
    again = recipe(data, steps=2, elastic=elastic)
    finetune(tmp_path / "one", recipe=again, run=run(tmp_path / "two"))

    config = json.loads((tmp_path / "two" / "config.json").read_text())

    assert config["victor"].get("elastic", False) is elastic
    assert config["victor"]["registers"] == 3


def press_ctrl_c_in_step(monkeypatch, number):
    seen = []

    def rate(step, settings):
        seen.append(step)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(step, settings)

    monkeypatch.setattr(loop, "learning_rate", rate)


def test_a_crash_goes_on_from_the_last_checkpoint(tmp_path, model, data, monkeypatch):
    finetune(model, recipe=recipe(data), run=run(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "hf")

    def crash(step, settings):
        if step == 5:
            raise RuntimeError("power cut")
        return learning_rate(step, settings)

    monkeypatch.setattr(loop, "learning_rate", crash)
    with pytest.raises(RuntimeError):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "parts"))
    monkeypatch.setattr(loop, "learning_rate", learning_rate)
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
    data.write_text(data.read_text().replace('"gpt", "value": "', '"gpt", "value": "two '))
    with pytest.raises(
        VictorError, match=r"another run lies here: SHA-256 of the data was \w+, is"
    ):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out", resume=True))
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

    def count(self, batch, whole):
        asked.append((len(batch.prefix), len(batch.keys)))
        return forward(self, batch, whole)

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

    whole = saving.save
    monkeypatch.setattr(saving, "save", write)
    finetune(model, recipe=recipe(data, steps=1), run=run(tmp_path / "out"))
    assert {path.name for path in tmp_path.glob("*out*")} == {"out"}


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


@pytest.mark.parametrize("parts", [{"distill": 1}, {"distill": 0, "hidden": 1}], ids=str)
def test_a_teacher_whose_weights_were_merged_before_is_announced(
    tmp_path, model, data, capsys, parts
):
    merged = recipe(data, "lora", steps=1, **parts)
    for number, source in enumerate((model, tmp_path / "0")):
        where = run(tmp_path / str(number), quiet=False)
        finetune(source, recipe=merged, run=where)
        assert capsys.readouterr().err.count("not known to be the unconverted") == number


def test_what_was_said_before_is_not_enough_to_match_states(tmp_path, model, data):
    matched = recipe(data, "registers", hidden=1, steps=1)
    finetune(model, recipe=matched, run=run(tmp_path / "fresh"))
    assert not (tmp_path / "hf").exists()

    finetune(model, recipe=recipe(data, "registers", steps=1), run=run(tmp_path / "known"))
    assert list((tmp_path / "hf").rglob("*.safetensors"))
    finetune(model, recipe=matched, run=run(tmp_path / "again"))

    lines = [(tmp_path / name / "loss.jsonl").read_text() for name in ("fresh", "again", "known")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["hidden"] > 0 for line in lines] == [True, True, False]


def test_dry_run_counts_and_writes_nothing(tmp_path, model, data):
    # registers 3 x 32; six layers of rank 3, whose Linears have in + out: q and o 32 + 32,
    # k and v 32 + 16, gate, up and down 32 + 64
    expected = 3 * 32 + 6 * 3 * (64 + 48 + 48 + 64 + 3 * 96)
    result = finetune(model, recipe=recipe(data), run=run(tmp_path / "out", dry_run=True))

    assert result["trainable_parameters"] == expected
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data"}


def test_dry_run_estimates_from_the_first_steps_rows(tmp_path, model, data):
    found = finetune(
        model, recipe=recipe(data, accumulate=2), run=run(tmp_path / "out", dry_run=True)
    )["estimate"]

    # of 6 steps of 2 rows the first 3 see the 5 conversations
    assert "The teacher is asked in 3 of 6 steps." in found["assumptions"]
    assert any("as much as the first: 2 pictures" in said for said in found["assumptions"])
    assert [one["name"] for one in found["machines"]] == ["1x24GB", "1x80GB", "8x80GB"]
    assert all(one["fits"] for one in found["machines"])
    # a model of 100,000 numbers and what the rung adds, in float32; gradients and two moments
    native = tiny_model().num_parameters()
    trained = 3 * 32 + 6 * 3 * (64 + 48 + 48 + 64 + 3 * 96)
    assert found["memory_bytes"]["weights"] == 4 * (native + trained)
    assert found["memory_bytes"]["optimizer"] == 12 * trained


def test_the_lineage_says_what_the_weights_depend_on(tmp_path, model, data):
    before = torch.get_num_threads()
    try:
        where = run(tmp_path / "out", dtype="bf16", attn="eager", threads=1)
        finetune(model, recipe=recipe(data, steps=1), run=where)
    finally:
        torch.set_num_threads(before)

    stage = lineage.read_lineage(tmp_path / "out")["stages"][-1]
    assert {key: stage[key] for key in ("data_sha256", "device", "dtype", "attention")} == {
        "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "eager",
    }
    assert stage["threads"] == 1
