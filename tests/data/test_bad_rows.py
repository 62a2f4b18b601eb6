"""Rows that cannot be used: listed in an error, or left out and told."""

import json

import pytest

from tests.data import forms
from victorctl.data.conversations import open_data
from victorctl.errors import VictorError


def ask(image="a.png", answer="cat"):
    return {"image": image, "question": "What?", "answer": answer}


def write(folder, *rows):
    """Write rows as lines, beside a picture, one that breaks off, and a file that is none."""
    forms.picture_file(folder)
    (folder / "cut.png").write_bytes(forms.png()[:60])
    (folder / "text.png").write_text("no picture")
    path = folder / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


TOOL = [{"role": "observation", "content": "4"}]
BAD = [
    ask("gone.png"),
    {"hello": 1},
    '{"question"',
    ask(answer=""),
    {"image": "a.png", "messages": TOOL},
    ask("https://a.b/c.png"),
]
REASONS = [
    "no such picture: {}/gone.png",
    "not a row",
    "not JSON: Expecting ':' delimiter",
    "no answer at the end",
    "role 'observation' is a tool's, and none is taken",
    "not a file: https://a.b/c.png",
]


def test_the_first_bad_rows_are_listed_together(tmp_path):
    path = write(tmp_path, ask(), *BAD)

    with pytest.raises(VictorError) as error:
        open_data(path)
    *lines, more = error.value.problem.splitlines()
    wanted = [f"{path}:{n}: {r.format(tmp_path)}" for n, r in enumerate(REASONS, start=2)]
    assert (lines, more) == (wanted[:5], "and 1 more")
    assert error.value.fix == (
        "correct the path; it is relative to the data file; "
        f"victorctl data check {path} lists what is bad (finetune can leave it "
        "out: --skip-bad)"
    )


def test_bad_rows_are_left_out_and_told_on_demand(tmp_path, capsys):
    path = write(tmp_path, ask(), *BAD, ask(answer="dog"))
    rows = open_data(path, skip_bad=True, quiet=False)

    assert [said.answers for said in rows[0].conversations] == [("cat",), ("dog",)]
    assert [problem.kind for problem in rows.problems] == [
        *("missing", "form", "json", "answer", "role", "missing"),
    ]  # fmt: skip
    err = capsys.readouterr().err
    assert f"{path}: JSON lines: questions with answers; 8 rows\n6 of 8 rows are bad" in err
    assert f"{path}:2: no such picture: {tmp_path / 'gone.png'}\n" in err
    assert "and 1 more" in err


def test_pictures_that_do_not_open_are_left_out_with_all_rows_about_them(tmp_path):
    path = write(tmp_path, ask("text.png"), ask(), ask("text.png", "dog"), ask("cut.png"))

    assert len(open_data(path)) == 3  # nothing is opened without it
    rows = open_data(path, skip_bad=True)
    assert [problem.place for problem in rows.problems] == [f"{path}:1", f"{path}:3"]
    assert [row.images[0].name for row in rows] == ["a.png", "cut.png"]  # whose head is whole


def test_stored_pictures_that_do_not_open_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "png", lambda: b"no picture")
    for write_form, place in ((forms.webdataset, ":b/1"), (forms.saved, "[0]")):
        path = str(write_form(tmp_path / write_form.__name__))
        rows = open_data(path, skip_bad=True)

        assert (len(rows), list(rows.pictured)) == (1, [])
        assert rows.problems[0].place == f"{path}{place}"


def test_data_of_bad_rows_alone_are_an_error(tmp_path):
    with pytest.raises(VictorError, match="no such picture"):
        open_data(write(tmp_path, ask("gone.png")), skip_bad=True)


def test_broken_files_are_named(tmp_path):
    for name, found in {
        "a.parquet": "not a parquet file",
        "a.tar": "not a tar that can be read",
        "a.yaml": "a mixture, which is for training",
        "a.txt": "not data that can be read",
    }.items():
        (tmp_path / name).write_text("text")
        with pytest.raises(VictorError, match=rf"{name}: {found}"):
            open_data(str(tmp_path / name))


def test_a_folder_says_what_it_lacks_or_has_too_much_of(tmp_path):
    def problem(spec):
        with pytest.raises(VictorError) as error:
            open_data(str(spec))
        return error.value

    forms.picture_file(tmp_path / "pictures")
    found = problem(tmp_path / "pictures")
    assert found.problem == f"{tmp_path / 'pictures'}: a folder without data"
    assert found.fix.startswith("pictures need a metadata.jsonl or metadata.csv")

    path = forms.llava(tmp_path / "both")
    (tmp_path / "both" / "b.jsonl").write_text("{}")
    assert problem(path.parent).problem.endswith("holds files of several forms: .json, .jsonl")
    assert problem(f"{path}:train").problem == f"{path}: has no splits, and 'train' was asked for"

    split = forms.parquet_folder(tmp_path / "split")
    assert problem(f"{split}:dev").fix == f"use one of: {split}:test, {split}:train"
