"""What is told of a run while it is under way.

Faults planted and caught: a resumed run that forgets what was before, a file that is written at
the end only.
"""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest

from tests.finetuning import prepare, recipe, run
from victorctl.errors import VictorError
from victorctl.finetune import finetune
from victorctl.logs import KINDS, Told, check, telling

BEFORE = [{"step": 1, "loss": 2.0}]


def test_a_file_has_a_line_for_every_step_as_soon_as_it_is_taken(tmp_path):
    with telling("jsonl", Told(tmp_path / "new" / "out", BEFORE, {})) as tell:
        tell({"step": 2, "loss": 1.5})
        text = (tmp_path / "new" / "out.log.jsonl").read_text()

    assert [json.loads(line) for line in text.splitlines()] == [*BEFORE, {"step": 2, "loss": 1.5}]


def test_a_run_tells_what_it_keeps(tmp_path, monkeypatch):
    model, data = prepare(tmp_path, monkeypatch)
    finetune(model, recipe=recipe(data, steps=3), run=run(tmp_path / "out", log="jsonl"))

    told, kept = tmp_path / "out.log.jsonl", tmp_path / "out" / "loss.jsonl"
    assert told.read_text() == kept.read_text()
    assert len(kept.read_text().splitlines()) == 3


def test_trackio_gets_the_settings_and_every_step_under_the_name_of_the_folder(
    tmp_path, monkeypatch
):
    told = []

    def init(**settings):
        told.append(settings)
        ended = lambda: told.append("ended")  # noqa: E731
        return SimpleNamespace(log=lambda *given: told.append(given), finish=ended)

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    with telling("trackio", Told(tmp_path / "out", BEFORE, {"steps": 2})) as tell:
        tell({"step": 2, "loss": 1.5})

    named = {"project": "victorctl", "name": "out", "config": {"steps": 2}, "resume": "allow"}
    assert told == [named, ({"loss": 1.5}, 2), "ended"]


@pytest.mark.slow
def test_tensorboard_reads_what_was_told(tmp_path):
    pytest.importorskip("tensorboard")
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    with telling("tensorboard", Told(tmp_path / "out", BEFORE, {"steps": 2})) as tell:
        tell({"step": 2, "loss": 1.5})

    found = events.EventAccumulator(str(tmp_path / "out.log.tensorboard"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(2, 1.5)]


def test_a_log_that_there_is_not_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(VictorError, match="--log wandb: no such log\n  fix: use none, jsonl, tens"):
        check("wandb", out, replace=False)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(VictorError, match=r"--log trackio: .*\n  fix: pip install trackio, or use"):
        check("trackio", out, replace=False)
    assert list(KINDS) == ["none", "jsonl", "tensorboard", "trackio"]
    check("jsonl", out, replace=False)


def test_what_lies_where_a_log_would_is_not_lost(tmp_path, monkeypatch):
    model, data = prepare(tmp_path, monkeypatch)
    (tmp_path / "out.log.jsonl").write_text("mine")

    with pytest.raises(
        VictorError, match=r"out\.log\.jsonl exists\n  fix: move it away, or add --o"
    ):
        finetune(model, recipe=recipe(data), run=run(tmp_path / "out", log="jsonl"))
    assert (tmp_path / "out.log.jsonl").read_text() == "mine"
    finetune(model, recipe=recipe(data), run=run(tmp_path / "out", log="jsonl", overwrite=True))


@pytest.mark.slow
def test_trackio_itself_says_nothing_on_stdout(tmp_path, capfd, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with telling("trackio", Told(tmp_path / "out", [], {"steps": 2})) as tell:
        tell({"step": 1, "loss": 1.5})
    assert capfd.readouterr().out == ""
