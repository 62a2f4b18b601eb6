import dataclasses
import functools
import shutil
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from tests.converting import run as convert
from tests.processors import PROCESSORS, tiny_family
from tests.tiny import tiny_llava, tiny_picture
from victorctl import checkpoint, overlay
from victorctl.contestants import enter
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe
from victorctl.show import show, table

QUESTION = "what is red ?"
RUN = Run(device="cpu", quiet=True)
FLAGS = {"victor.registers": 3, "victor.drop_layer": 2, "convert.verify": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_llava(folder / "source")
    convert(folder / "source", folder / "victor", flags=FLAGS)
    return folder / "victor"


@functools.cache
def entered(folder, registers, base):
    """Load everyone once."""
    recipe = load_recipe(flags={"eval.registers": registers})
    return enter(folder, recipe, dataclasses.replace(RUN, base=base))


@pytest.fixture
def picture(tmp_path, monkeypatch):
    """A picture in the working folder; what is slow is brief, and the drawing is blank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("victorctl.show.LONGEST", 4)
    monkeypatch.setattr("victorctl.show.REPEATS", 1)
    monkeypatch.setattr("victorctl.show.draw", lambda *_, **_more: Figure((1, 1)))
    monkeypatch.setattr(
        "victorctl.show.enter",
        lambda folder, recipe, run: entered(folder, recipe.eval.registers, run.base),
    )
    tiny_picture(1, (64, 32)).save("cat.png")
    return tmp_path / "cat.png"


def look(model, picture, *, registers=None, **run):
    recipe = load_recipe(flags={"eval.registers": registers})
    return show(model, picture, QUESTION, recipe=recipe, run=dataclasses.replace(RUN, **run))


def answered(model, picture, *, off):
    """Let a model of the folder answer as its users do."""
    loaded, processor = checkpoint.load(model, RUN), checkpoint.load_processor(model)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = processor(images=Image.open(picture), text=text, return_tensors="pt")
    with torch.no_grad(), loaded.registers_off() if off else torch.no_grad():
        written = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_both_answers_their_times_and_where_registers_look(model, picture):
    found = look(model, picture)

    assert found["answers"] == {
        "model": answered(model, picture, off=False).strip(),
        "base": answered(model, picture, off=True).strip(),
    }
    assert found["question"] == QUESTION
    assert all(found["seconds"][key][who] > 0 for key in ("first_token", "answer")
               for who in ("model", "base"))  # fmt: skip
    assert found["tokens"] == {"model": 4, "base": 4}  # none of them ends the answer
    assert (found["registers"], found["layers"]) == (3, [0, 1])
    assert [layer["layer"] for layer in found["attention"]] == [0, 1]
    for layer in found["attention"]:
        shares = [own["share"] for own in layer["registers"]]
        assert layer["mean"]["share"] == pytest.approx(np.mean(shares))
        assert all(0 < share < 1 for share in shares)
        for own in layer["registers"]:
            assert 1 <= own["tokens"] <= 16
            # 64 x 32, of which the middle half was seen as 4 x 4 patches
            row, column = divmod(own["token"], 4)
            place = [0.25 + (column + 0.5) / 8, (row + 0.5) / 4]
            assert own["place"] == pytest.approx(place, abs=0.02)
    shown = printed(found)
    assert all(found["answers"][who] in shown for who in ("model", "base"))
    assert (QUESTION in shown, "layer 1" in shown, "layer 0" in shown) == (True, True, False)
    across, down = found["attention"][1]["registers"][2]["place"]
    assert f"{across:.0%} from left, {down:.0%} from top" in shown.split("register 2")[1]


def test_the_drawing_lies_here_is_named_after_the_picture_and_says_who_drew_it_without_a_base_too(
    model, picture, monkeypatch
):
    monkeypatch.setattr("victorctl.show.draw", overlay.draw)

    found = look(model, picture, base="none")

    assert (found["answers"]["base"], found["seconds"]["answer"]["base"]) == (None, None)
    assert found["picture"] == "cat-victor.png"
    with Image.open("cat-victor.png") as drawn:
        assert (drawn.format, drawn.info["Software"]) == ("PNG", "victorctl show")
        assert drawn.width > 1000
    assert not list(model.glob("*.png"))


def test_answers_of_different_length_are_shown_with_their_tokens(model, picture, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "victorctl.show.draw", lambda *_, said, **_more: drawn.extend(said) or Figure((1, 1))
    )
    generate = show.__globals__["_generate"]

    def shorter(field, name, asked, most):
        written = generate(field, name, asked, most)
        return written[:, :1] if name == "model" else written

    monkeypatch.setattr("victorctl.show._generate", shorter)
    found = look(model, picture)

    assert found["tokens"] == {"model": 1, "base": 4}
    assert [one.seconds.split(" for ")[1] for one in drawn] == ["1 token", "4 tokens"]
    shown = [line.split() for line in printed(found).splitlines()]
    (head,) = (line for line in shown if line[:2] == ["first", "token"])
    assert head == ["first", "token", "answer", "tokens"]
    # name, time and unit, time and unit, tokens
    assert {line[0]: line[5] for line in shown if line and line[0] in ("model", "base")} == {
        "model": "1", "base": "4",
    }  # fmt: skip


def test_letters_that_no_font_has_are_named_in_one_line(model, picture, monkeypatch, capsys):
    monkeypatch.setattr("victorctl.show.draw", overlay.draw)
    monkeypatch.setattr("victorctl.fonts.OTHERS", ())
    monkeypatch.setattr("tests.test_show.QUESTION", "what is \u732b ?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(model, picture, base="none")
    shown = capsys.readouterr().err.splitlines()
    assert [line for line in shown if "warning" in line] == [
        "warning: no font that was found here can draw \u732b; the drawing has boxes instead; "
        "the terminal and --json have the text"
    ]


def test_an_earlier_drawing_is_replaced_and_anything_else_only_on_demand(model, picture, tmp_path):
    look(model, picture, base="none")
    look(model, picture, base="none")
    shutil.copy(picture, "mine.png")
    with pytest.raises(VictorError, match=r"mine\.png: exists already, and was not drawn by vict"):
        look(model, picture, out=tmp_path / "mine.png")
    look(model, picture, out=tmp_path / "mine.png", overwrite=True, base="none")

    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(VictorError, match=r"text\.png: exists already"):
        look(model, picture, out=tmp_path / "text.png")


def test_places_where_something_would_be_lost_are_refused_before_anything_is_loaded(
    model, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr("victorctl.show.enter", lambda *_: pytest.fail("loaded"))
    (tmp_path / "folder.png").mkdir()
    for out, sentence in {
        model / "a.png": r"lies in .*victor, which is read",
        tmp_path / "a.jpg": r"a PNG is drawn\n  fix: use --out a\.png",
        tmp_path / "folder.png": "no file stands there",
        picture: "this is the picture that is asked about",
    }.items():
        with pytest.raises(VictorError, match=sentence):
            look(model, picture, out=out, overwrite=True)


def test_an_empty_question_is_refused(model, picture):
    with pytest.raises(VictorError, match="the question is empty\n  fix: ask something: -q"):
        show(model, picture, " ", recipe=load_recipe(), run=RUN)


def test_what_is_no_picture_or_no_victor_model_is_refused(model, picture, tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(VictorError, match=r"a\.txt: not a readable picture.*\n  fix: give a file"):
        look(model, tmp_path / "a.txt")
    with pytest.raises(VictorError, match=r"none\.png: no such file\n  fix: give a file"):
        look(model, tmp_path / "none.png")
    with pytest.raises(VictorError, match=r": a folder\n  fix: give a file"):
        look(model, tmp_path)
    with pytest.raises(VictorError, match="not a Victor model yet"):
        look(model.parent / "source", picture)


def test_fewer_registers_of_an_elastic_model_are_used_and_drawn(model, picture, capsys):
    found = look(model, picture, registers=2, base="none")
    assert [len(layer["registers"]) for layer in found["attention"]] == [2, 2]
    assert "was not trained for fewer registers" in capsys.readouterr().err


def test_only_the_last_layer_is_drawn_where_all_would_be_too_many_panels(
    model, picture, monkeypatch
):
    monkeypatch.setattr("victorctl.show.PANELS", 7)  # two layers of a mean and 3 registers are 8
    found = look(model, picture)
    assert (found["layers"], len(found["attention"])) == ([1], 2)


def test_tokens_that_cannot_be_laid_over_the_picture_are_drawn_in_reading_order(
    model, picture, monkeypatch, capsys
):
    monkeypatch.setattr("victorctl.show.places", lambda *_: None)
    found = look(model, picture)
    assert found["attention"][0]["mean"]["place"] is None
    assert "is not known; they are drawn in reading order" in capsys.readouterr().err
    assert "token " in printed(found)


def printed(found):
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(found))
    return shown.get()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_registers_of_every_family_are_laid_over_its_pictures(tmp_path, picture, name):
    tiny_family(name).save_pretrained(tmp_path / "source")
    PROCESSORS[name]().save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "victor", flags=FLAGS)

    found = look(tmp_path / "victor", picture)

    for layer in found["attention"]:
        assert len(layer["registers"]) == 3
        assert 0 < layer["mean"]["share"] < 1
    assert any(own["place"] for layer in found["attention"] for own in layer["registers"])
