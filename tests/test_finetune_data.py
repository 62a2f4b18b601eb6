"""What the finetune stage trains on: stored data, mixtures, and rows that are left out."""

import json

import pytest

from tests.data import forms
from tests.finetuning import QUICK, prepare, run
from victorctl import lineage, saving
from victorctl.errors import VictorError
from victorctl.finetune import finetune
from victorctl.recipe import Recipe


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return prepare(tmp_path, monkeypatch)


def recipe(**data):
    return Recipe(data=data, train={**QUICK, "steps": 2})


def test_a_mixture_of_forms_is_trained_on(tmp_path, made):
    model, data = made
    mixture = {str(data): 1, str(forms.saved(tmp_path / "saved")): 2}
    finetune(model, recipe=recipe(mix=mixture), run=run(tmp_path / "out"))

    stage = lineage.read_lineage(tmp_path / "out")["stages"][-1]
    assert stage["settings"]["data"]["mix"] == mixture
    assert len(stage["data_sha256"]) == 64
    assert len((tmp_path / "out" / "loss.jsonl").read_text().splitlines()) == 2


def test_a_stopped_run_goes_on_only_with_the_same_stored_data(tmp_path, made, monkeypatch):
    model, _ = made
    tar = forms.webdataset(tmp_path / "tar")
    wanted = recipe(train=str(tar))
    wanted = wanted.model_copy(update={"train": wanted.train.model_copy(update={"batch_size": 1})})
    with monkeypatch.context() as stopped:
        stopped.setattr(saving, "save", lambda *_: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception, match="stopped here"):
            finetune(model, recipe=wanted, run=run(tmp_path / "out"))
    tar.write_bytes(tar.read_bytes().replace(b"A cat.", b"A dog."))  # as long as before

    with pytest.raises(VictorError, match="another run lies here: SHA-256 of the data"):
        finetune(model, recipe=wanted, run=run(tmp_path / "out", resume=True))
    tar.write_bytes(tar.read_bytes().replace(b"A dog.", b"A cat."))
    finetune(model, recipe=wanted, run=run(tmp_path / "out", resume=True))


def test_bad_rows_are_left_out_on_demand(tmp_path, made):
    model, data = made
    rows = json.loads(data.read_text())
    rows[1]["image"] = "gone.png"
    data.write_text(json.dumps(rows))

    with pytest.raises(VictorError, match=r"data\.json\[1\]: no such picture"):
        finetune(model, recipe=recipe(train=str(data)), run=run(tmp_path / "out"))
    finetune(model, recipe=recipe(train=str(data), skip_bad=True), run=run(tmp_path / "out"))


def test_no_data_at_all_is_said(tmp_path, made):
    with pytest.raises(VictorError, match="finetune needs data"):
        finetune(made[0], recipe=recipe(mix={}), run=run(tmp_path / "out"))
