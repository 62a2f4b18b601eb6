"""Every form of data, against the same two rows."""

import shutil
from pathlib import Path

import datasets
import pytest
from PIL import Image

from tests.data import forms
from tests.data.forms import FORMS
from tests.tiny import tiny_picture, tiny_processor
from victorctl.data import records
from victorctl.data.batches import IGNORED, encode
from victorctl.data.conversations import open_data
from victorctl.data.records import Embedded
from victorctl.data.tables import Cell

IMAGE = {"type": "image"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Give `datasets` a cache of its own, and no bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(params=FORMS, ids=lambda write: write.__name__)
def spec(request, tmp_path):
    return str(request.param(tmp_path / "data"))


def contents(row):
    return [(turn["role"], turn["content"]) for turn in row.conversations[0].messages]


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form_becomes_the_same_rows(tmp_path, write):
    rows = open_data(str(write(tmp_path / "data")))
    shown, plain = rows

    assert rows.form == FORMS[write]
    assert contents(shown) == [
        ("user", [IMAGE, {"type": "text", "text": "What is this?"}]),
        ("assistant", [{"type": "text", "text": "A cat."}]),
    ]
    assert contents(plain) == [
        (role, [{"type": "text", "text": text}]) for role, text in forms.TEXT
    ]
    (picture,) = shown.pictures()
    assert picture.tobytes() == tiny_picture(0).tobytes()
    assert (plain.images, list(rows.pictured)) == ((), [0])


def test_the_loss_is_on_the_answers_alone(spec):
    processor = tiny_processor()
    for row, answer in zip(open_data(spec), ("a cat . </s>", "0 </s>"), strict=True):
        (encoded,) = encode(row, processor).conversations
        labelled = [token for token in encoded.labels if token != IGNORED]
        wanted = answer.replace("0", "<unk>")  # the tiny vocabulary has no digits
        assert processor.tokenizer.decode(labelled) == wanted


FOUR = ("what is it ?", "a cat", "which ?", "red")
PAIRS = [*zip(("user", "assistant") * 2, FOUR, strict=True)]
SEVERAL = [
    {"conversations": forms.tagged(
        [("user", "<image> <image> what is it ?"), *PAIRS[1:]], "from", "value", user="human",
        assistant="gpt")},
    {"messages": forms.tagged(PAIRS, "role", "content")},
    {"texts": [dict(PAIRS[:2]), dict(PAIRS[2:])]},
]  # fmt: skip


@pytest.mark.parametrize("row", SEVERAL, ids=lambda row: next(iter(row)))
def test_the_loss_is_on_every_answer_of_a_row_with_several_turns_and_pictures(tmp_path, row):
    (made,) = open_data(str(forms.in_json(tmp_path, row | {"images": ["a.png", "a.png"]})))
    processor = tiny_processor()
    (encoded,) = encode(made, processor).conversations

    def said(wanted):
        pairs = zip(encoded.input_ids, encoded.labels, strict=True)
        kept = [token for token, label in pairs if (label != IGNORED) == wanted]
        return processor.tokenizer.decode(kept).replace("<image>", "").split()

    assert said(True) == "a cat red </s>".split()
    assert said(False) == "<s> user : what is it ? assistant : user : which ? assistant :".split()
    assert encoded.input_ids.count(processor.image_token_id) == 2 * 16


def test_pictures_stay_closed_until_they_are_asked_for(spec, monkeypatch):
    read = []
    monkeypatch.setattr(Image, "open", lambda *_: read.append("opened"))
    with monkeypatch.context() as closed:
        closed.setattr(Cell, "__call__", lambda *_: read.append("read"))
        closed.setattr(records, "_bytes", lambda *_: read.append("read"))
        open_data(spec)
    rows = open_data(spec)
    for row in rows:
        for image in row.images:
            if isinstance(image, Embedded):
                assert image.read() == forms.png()
            else:
                assert isinstance(image, Path)
    assert (len(rows.with_pictures()), read) == (1, [])


def test_only_so_many_rows(spec):
    rows = open_data(spec, rows=1)

    assert (len(rows), rows[0].pictures()[0].size) == (1, (32, 32))
    assert len(open_data(spec, rows=2)) == 2


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_the_hash_is_that_of_the_data_and_not_of_their_place(tmp_path, write, monkeypatch):
    def open_in(folder):
        spec = str(write(tmp_path / folder))
        return open_data(spec).sha256

    first = open_in("one")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert open_in("elsewhere") == first
    monkeypatch.setattr(forms, "TEXT", [("user", "Two - two?"), ("assistant", "1")])
    assert open_in("three") != first


def test_a_split_is_what_the_names_of_files_call_it(tmp_path):
    for name in ("dev", "validation", "testdev", "more"):
        forms.in_json(
            tmp_path, {"image": "a.png", "question": name, "answer": "x"}, name=f"{name}.json"
        )

    def asked(split):
        rows = open_data(f"{tmp_path}:{split}")
        return [row.conversations[0].question for row in rows]

    assert asked("testdev") == ["testdev"]  # none of the usual ones
    assert (asked("dev"), asked("validation")) == (["dev"], ["validation"])  # both mean the same
    (tmp_path / "validation.json").unlink()
    assert asked("validation") == ["dev"]
    assert asked("train") == ["more"]  # without a word
