"""An evaluation that cannot be done is refused before anything is loaded or written."""

import dataclasses
import re
import shutil

import pytest
import torch

from tests.tiny import tiny_data, tiny_llava
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
        VictorError,
        match=r"out: (holds something else than a report|a file stands there)\n  fix:",
    ):
        evaluate(place / "model", recipe=DEMO, run=run)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_picture_that_breaks_off_is_named_with_what_to_do(place, tmp_path):
    data = tiny_data(tmp_path / "data")
    (tmp_path / "data" / "2.png").write_bytes((tmp_path / "data" / "2.png").read_bytes()[:60])
    recipe = load_recipe(None, settings=[f"eval.data={data}", "eval.repeats=0"])
    sentence = (
        r"2\.png: not a readable picture: .*\n  fix: replace it with a picture and add --resume"
    )
    with pytest.raises(VictorError, match=sentence):
        evaluate(
            place / "model", recipe=recipe, run=dataclasses.replace(QUIET, out=tmp_path / "out")
        )


def test_prompts_that_are_longer_than_the_model_was_made_for_are_warned_of(
    place, tmp_path, monkeypatch, capsys
):
    data = tiny_data(tmp_path / "data")
    asked = [f"eval.data={data}", "eval.repeats=0", "eval.max_new_tokens=5"]

    def said(most):
        monkeypatch.setitem(evaluate.__globals__, "positions_of", lambda _field: most)
        run = dataclasses.replace(QUIET, out=tmp_path / "out")
        evaluate(place / "model", recipe=load_recipe(None, settings=asked), run=run)
        return capsys.readouterr().err

    found = re.search(r"data: up to (\d+) tokens with the answer, .* made for 1 \(", said(1))
    longest = int(found[1])
    assert "warning" in said(longest - 1)
    assert "warning" not in said(longest)


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
