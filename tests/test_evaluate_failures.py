"""An evaluation that cannot be done is refused before anything is loaded or written."""

import dataclasses
import shutil

import pytest
import torch

from tests.tiny import tiny_llava
from victorctl.asking import Asking
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.recipe import Run, load_recipe

QUIET = Run(device="cpu", quiet=True)
DEMO = load_recipe(None, settings=["eval.data=demo:test"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A converted model and its source."""
    folder = tmp_path_factory.mktemp("place")
    tiny_llava(folder / "source")
    recipe = load_recipe(None, settings=["convert.verify=none"])
    run = dataclasses.replace(QUIET, out=folder / "model")
    convert(str(folder / "source"), recipe=recipe, run=run)
    return folder


@pytest.mark.parametrize("kind", ["a file", "other files", "a model"])
def test_anything_else_that_stands_there_is_refused_before_anything_is_loaded(
    place, tmp_path, kind
):
    out = tmp_path / "out"
    if kind == "a file":
        out.write_text("mine")
    elif kind == "other files":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        shutil.copytree(place / "model", out)
        (out / "report.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))

    run = dataclasses.replace(QUIET, out=out)
    with pytest.raises(
        VictorError, match=r"out: holds something else than a report\n  fix: choose"
    ):
        evaluate(place / "model", recipe=DEMO, run=run)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded(place, capsys):
    run = Run(device="tpu")
    with pytest.raises(VictorError, match="--device tpu: no such device"):
        evaluate(place / "model", recipe=DEMO, run=run)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("size", "fix"), [(6, "--batch-size 3"), (1, "another GPU")], ids=["several", "one"]
)
def test_a_full_gpu_is_an_error_that_says_how_to_need_less(place, monkeypatch, size, fix):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Asking, "ask_on", full)
    recipe = load_recipe(None, settings=["eval.data=demo:test", f"eval.batch_size={size}"])
    with pytest.raises(VictorError, match=rf"at once, {size}, do not fit.*\n  fix: .*{fix}"):
        evaluate(place / "model", recipe=recipe, run=QUIET)
    assert not (place / "model" / "eval").exists()


def test_a_place_that_may_not_be_written_to_is_refused_before_anything_is_loaded(
    place, tmp_path, capsys
):
    (tmp_path / "file").touch()
    run = Run(out=tmp_path / "file" / "eval", device="cpu")
    with pytest.raises(VictorError, match="so no folder can be made in it"):
        evaluate(place / "model", recipe=DEMO, run=run)
    assert capsys.readouterr().err == ""


def test_questions_are_needed(place):
    with pytest.raises(VictorError, match=r"eval needs questions\n  fix: add --data demo:test"):
        evaluate(place / "model", recipe=load_recipe(None), run=QUIET)


def test_a_model_that_was_not_converted_is_refused(place):
    with pytest.raises(VictorError, match=r"not a Victor model yet\n  fix: victorctl convert"):
        evaluate(place / "source", recipe=DEMO, run=QUIET)
