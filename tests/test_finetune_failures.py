"""What the finetune stage refuses, before and during training; nothing half-written stays.

Faults planted and caught: checkpoints counted with one moment only, rows of text that take a place
in a step.
"""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from tests.finetuning import QUICK, prepare, recipe, run
from tests.tiny import tiny_llava, tiny_picture, tiny_processor
from victorctl import checkpoint, folders
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.finetune import finetune
from victorctl.recipe import Recipe, Run


@pytest.fixture
def made(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def model(made):
    return made[0]


@pytest.fixture
def data(made):
    return made[1]


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


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            None,
            r"batch_size is 6, and the data has 5 rows.*\n  fix: add --batch-size 5",
        ),
        ("demo:test", r"not to be trained on\n  fix: train on --data demo"),
    ],
)
def test_data_that_do_not_suit_are_refused_before_the_model_is_loaded(  # noqa: PLR0913
    tmp_path, model, data, monkeypatch, spec, sentence
):
    monkeypatch.setattr(checkpoint, "load", None)
    with pytest.raises(VictorError, match=sentence):
        finetune(model, recipe=recipe(spec or data, batch_size=6), run=run(tmp_path / "out"))


def test_an_unconverted_model_is_refused(tmp_path, data):
    plain = tiny_llava(tmp_path / "plain")
    with pytest.raises(VictorError, match="not a Victor model yet"):
        finetune(plain, recipe=recipe(data), run=run(tmp_path / "out"))


def test_an_output_that_exists_is_not_touched(tmp_path, model, data):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(VictorError, match="exists already"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))
    with pytest.raises(VictorError, match="which is read"):
        finetune(model, recipe=recipe(data), run=run(model, overwrite=True))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, model, data):
    with pytest.raises(
        VictorError,
        match=r"the loss is inf at step 1; out\.step-1\.safetensors has what was read\n"
        r"  fix: look whether .* lower train.*again with --overwrite",
    ):
        finetune(model, recipe=recipe(data, cross_entropy=1e39), run=run(tmp_path / "out"))
    (kept,) = tmp_path.glob("out*")  # and nothing of the run
    with safe_open(kept, "pt") as batch:
        told = batch.metadata()
        assert {"prefix", "suffix", "labels", "images.pixel_values"} <= set(batch.keys())
        assert len(batch.get_tensor("prefix")) == len(json.loads(told["rows"])) == 2
    assert told["problem"] == "the loss is inf"


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(tmp_path, model, data):
    huge = recipe(data, learning_rate=1e30, clip=1e30, warmup=0.0)  # the loss of step 2 is finite
    with pytest.raises(VictorError, match=r"the gradient's length is (nan|inf) at step 2"):
        finetune(model, recipe=huge, run=run(tmp_path / "out"))
    assert [path.name for path in tmp_path.glob("out*")] == ["out.step-2.safetensors"]  # no state


def test_weights_in_float16_are_not_trained_as_they_are(tmp_path, model, data):
    with pytest.raises(VictorError, match="small gradients vanish\n  fix: add --dtype bf16"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out", dtype="fp16"))


def full_gpu_from_step(number, monkeypatch):
    def forward(self, batch, share):
        steps.append(batch)
        if len(steps) >= number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, batch, share)

    steps, whole = [], Distillation.forward
    monkeypatch.setattr(Distillation, "forward", forward)


def test_a_full_gpu_says_how_a_step_needs_less_and_leaves_the_last_checkpoint(
    tmp_path, model, data, monkeypatch
):
    settings = recipe(data, batch_size=5, questions=3)
    finetune(model, recipe=settings, run=run(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "hf")
    full_gpu_from_step(4, monkeypatch)
    with pytest.raises(
        VictorError,
        match=r"step 4 does not fit .* with train\.batch_size 5 and train\.questions 3\n"
        r"  fix: go on with --resume and --set train\.accumulate=2 or --set train\.checkpointing=",
    ):
        finetune(model, recipe=settings, run=run(tmp_path / "out"))
    monkeypatch.undo()
    monkeypatch.setattr("victorctl.teacher.HF_HOME", str(tmp_path / "hf"))
    finetune(model, recipe=settings, run=run(tmp_path / "out", resume=True))

    whole, resumed = (tmp_path / name / "victor.safetensors" for name in ("whole", "out"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_a_gpu_too_small_for_one_question_offers_nothing_that_does_not_help(
    tmp_path, model, data, monkeypatch
):
    full_gpu_from_step(1, monkeypatch)
    least = recipe(data, batch_size=1, questions=1, checkpointing=True)
    with pytest.raises(VictorError, match=r"train\.questions 1\n  fix: use another GPU$"):
        finetune(model, recipe=least, run=run(tmp_path / "out", dtype="bf16"))
    assert not any(tmp_path.glob("out*"))


def text_rows(data, count):
    """Put so many rows without a picture in front."""
    turns = [{"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": "one"}]
    records = json.loads(data.read_text())
    data.write_text(json.dumps([{"conversations": turns}] * count + records))


def test_rows_without_pictures_are_counted_once_and_change_nothing(tmp_path, model, data, capsys):
    finetune(model, recipe=recipe(data, batch_size=1), run=run(tmp_path / "pictures"))
    text_rows(data, 7)
    finetune(model, recipe=recipe(data, batch_size=1), run=run(tmp_path / "both", quiet=False))

    assert capsys.readouterr().err.count("7 of 12 rows show no picture and are left out") == 1
    one, other = (tmp_path / name / "victor.safetensors" for name in ("pictures", "both"))
    assert one.read_bytes() == other.read_bytes()


def test_data_without_a_picture_is_refused_before_the_model_is_loaded(
    tmp_path, model, data, monkeypatch
):
    data.write_text("[]")
    text_rows(data, 2)
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(VictorError, match=r"data\.json: no row shows a picture"):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))


# 9312 numbers are trained, of 4 bytes: as many in test_dry_run_counts_and_writes_nothing. With
# two moments each, a checkpoint has three times as many. It is replaced by another one while it
# stands, which takes more than the result beside it.
NEEDED = 2 * 3 * 4 * 9312


@pytest.mark.parametrize("missing", [0, 1])
def test_a_disk_too_small_for_checkpoints_is_noticed_before_training(
    tmp_path, model, data, monkeypatch, missing
):
    free = NEEDED + folders.SPARE - missing
    usage = shutil._ntuple_diskusage(free, 0, free)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    settings, where = recipe(data, steps=1), run(tmp_path / "out")
    if not missing:
        assert finetune(model, recipe=settings, run=where)["steps"] == 1
        return
    monkeypatch.setattr(Distillation, "forward", lambda *_: pytest.fail("trained first"))
    with pytest.raises(VictorError, match=r"out: needs .*\n  fix: free some space, or choose"):
        finetune(model, recipe=settings, run=where)
    assert not any(tmp_path.glob("*out*"))


def test_registers_that_cannot_overlay_a_picture_are_refused_as_in_the_model(tmp_path, monkeypatch):
    model, data = prepare(tmp_path, monkeypatch, registers=17)  # of 16 visual tokens
    inputs = tiny_processor()(text="<image> what ?", images=tiny_picture(), return_tensors="pt")
    with pytest.raises(ValueError, match="17 registers cannot overlay") as native:
        checkpoint.load(model, Run(device="cpu"))(**inputs)
    with pytest.raises(VictorError) as ours:
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out"))

    assert str(ours.value) == str(native.value)
    assert not any(tmp_path.glob("*out*"))
