"""The demo runs the three stages, each on what the one before left, and nothing of a user's."""

import importlib
from pathlib import Path

import pytest

from victorctl.errors import VictorError
from victorctl.recipe import Run
from victorctl.sources import DEMO

STAGE = importlib.import_module("victorctl.demo")  # `victorctl.demo` may be the function


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Put stand-ins for the stages; they keep what they were called with."""
    calls = []

    def stand_in(name):
        def stage(source, *, recipe, run):
            calls.append((name, source, recipe, run))
            return {"report": str(run.out / "report.html")} if name == "evaluate" else {"of": name}

        monkeypatch.setattr(STAGE, name, stage)

    for name in ("convert", "finetune", "evaluate"):
        stand_in(name)
    monkeypatch.chdir(tmp_path)
    return calls


def test_each_stage_works_on_what_the_one_before_left(stages):
    found = STAGE.demo(run=Run(out=Path("d"), quiet=True))

    assert [(name, source, run.out) for name, source, _, run in stages] == [
        ("convert", str(DEMO), Path("d/converted")),
        ("finetune", Path("d/converted"), Path("d/model")),
        ("evaluate", Path("d/model"), Path("d/eval")),
    ]
    assert list(found) == ["folder", "convert", "finetune", "eval", "seconds"]
    assert (found["folder"], found["convert"]) == ("d", {"of": "convert"})


def test_the_folder_is_victor_demo_if_none_is_given(stages):
    assert STAGE.demo(run=Run(quiet=True))["folder"] == "victor-demo"


def test_every_stage_computes_where_and_how_it_was_asked_for(stages):
    STAGE.demo(run=Run(device="cpu", dtype="bf16", attn="eager", threads=2, quiet=True), steps=7)

    assert {recipe.train.steps for _, _, recipe, _ in stages} == {7}
    for _, _, _, run in stages:
        assert (run.device, run.dtype, run.attn, run.threads) == ("cpu", "bf16", "eager", 2)
        assert run.overwrite
        assert run.quiet


def test_one_thread_computes_unless_more_are_asked_for(stages):
    STAGE.demo(run=Run(quiet=True))

    assert {run.threads for *_, run in stages} == {1}


def test_an_earlier_demo_is_replaced_and_anything_else_refused(stages):
    for part in ("converted", "model", "model.training", "eval"):
        Path("d", part).mkdir(parents=True)
    STAGE.demo(run=Run(out=Path("d"), quiet=True))
    assert len(stages) == 3

    Path("d", "notes.txt").touch()
    Path("file").touch()
    for out, what in (("d", r"notes\.txt"), ("file", "a file")):
        with pytest.raises(
            VictorError, match=rf"{out}: holds more than an earlier demo \({what}\)\n  fix: choose"
        ):
            STAGE.demo(run=Run(out=Path(out), quiet=True))
    assert len(stages) == 3


def test_it_says_what_happens_and_where_the_results_are(stages, capsys):
    STAGE.demo(run=Run(out=Path("d")))

    told = capsys.readouterr().err.splitlines()
    assert [line[:3] for line in told[:3]] == ["1/3", "2/3", "3/3"]
    assert told[3:] == ["the model: d/model; the report: d/eval/report.html"]


@pytest.mark.parametrize(
    ("stage", "left", "following"),
    [
        ("convert", None, None),
        ("finetune", None, None),  # nothing was saved yet: the demo begins anew
        (
            "finetune",
            "d d/model.training",
            "next: victorctl finetune 'd d/converted' --out 'd d/model' --recipe demo/quick "
            "--steps 9 --resume",
        ),
        (
            "evaluate",
            "d d/model",
            "next: victorctl eval 'd d/model' --out 'd d/eval' --recipe demo/quick",
        ),
    ],
)
def test_ctrl_c_says_how_to_go_on_if_something_was_saved(  # noqa: PLR0913
    stages, monkeypatch, capsys, stage, left, following
):
    def interrupted(*_given, **_named):
        if left:
            Path(left).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(STAGE, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        STAGE.demo(run=Run(out=Path("d d")), steps=9)

    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if not line[0].isdigit()] == ([following] if following else [])
