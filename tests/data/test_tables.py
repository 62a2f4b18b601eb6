"""Stored pictures and texts that are no plain rows: what tables and tars may hold."""

import io
import json
import tarfile

import pyarrow as pa
import pytest
from datasets import Dataset, load_dataset
from pyarrow import parquet

from tests.data import forms
from tests.tiny import tiny_picture
from victorctl.data import tables
from victorctl.data.conversations import open_data

STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})
ASKED = {"question": "Which?", "answer": "that"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def stored(seed):
    return {"bytes": forms.png(seed), "path": None}


def write(folder, kind, *cells, name="images"):
    """Write a column of pictures as anybody's tool would, without a word of `datasets`."""
    columns = {name: pa.array(cells, kind)}
    columns |= {key: [value] * len(cells) for key, value in ASKED.items()}
    parquet.write_table(pa.table(columns), folder / "data.parquet")
    return str(folder / "data.parquet")


def seeds(row):
    """Tell by their first pixels which pictures a row shows."""
    known = {tiny_picture(seed).tobytes(): seed for seed in range(6)}
    return [known[picture.tobytes()] for picture in row.pictures()]


def test_several_pictures_of_a_row_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 2)  # which the second row of three does not end
    cells = [stored(0)], [stored(1), stored(2), stored(3)], [stored(4), None, stored(5)]
    rows = open_data(write(tmp_path, pa.list_(STORED), *cells))

    assert [seeds(row) for row in rows] == [[0], [1, 2, 3], [4, 5]]
    assert str(rows[1].images[2]) == f"{tmp_path / 'data.parquet'}[1], images 3"


def test_a_picture_may_be_a_file_beside_the_data(tmp_path):
    (tmp_path / "b.png").write_bytes(forms.png(2))
    named = {"bytes": None, "path": "b.png"}
    rows = open_data(write(tmp_path, STORED, stored(1), named, None, name="image"))

    assert [seeds(row) for row in rows] == [[1], [2], []]
    assert rows[1].images == (tmp_path / "b.png",)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_a_column_of_pictures(tmp_path, kind):
    rows = open_data(write(tmp_path, kind, forms.png(3), None, name="image"))

    assert [seeds(row) for row in rows] == [[3], []]


def test_a_column_of_names_is_relative_to_the_file(tmp_path):
    (tmp_path / "b.png").write_bytes(forms.png(2))
    rows = open_data(write(tmp_path, pa.list_(pa.string()), ["b.png"], []))

    assert [seeds(row) for row in rows] == [[2], []]


def test_a_column_may_hold_texts_and_typed_parts_beside_each_other(tmp_path):
    parts = [{"type": "text", "text": "Which?"}]
    answer = {"role": "assistant", "content": "that"}
    turns = [[{"role": "user", "content": said}, answer] for said in ("Which?", parts)]
    lines = "\n".join(json.dumps({"messages": said}) for said in turns)
    (tmp_path / "data.jsonl").write_text(lines)
    load_dataset("json", data_files=str(tmp_path / "data.jsonl"), split="train").save_to_disk(
        tmp_path / "saved"
    )

    first, second = open_data(str(tmp_path / "saved"))
    assert first.conversations[0].messages == second.conversations[0].messages
    assert first.conversations[0].question == "Which?"


def test_a_webdataset_of_the_hub_is_one_column_for_each_suffix(tmp_path):
    columns = {"__key__": ["a", "b"], "json": [ASKED, {**ASKED, "answer": "this"}]}
    columns |= {"1.png": [stored(1), stored(2)], "0.png": [stored(0), None]}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    rows = open_data(str(tmp_path / "saved"))

    assert [(row.id, seeds(row)) for row in rows] == [("a", [0, 1]), ("b", [2])]
    assert [row.conversations[0].answers for row in rows] == [("that",), ("this",)]


def test_a_sample_of_a_tar_has_several_pictures_or_a_caption(tmp_path):
    files = {
        "x/a.1.png": forms.png(1), "x/a.0.png": forms.png(0),
        "x/a.json": json.dumps(ASKED).encode(),
        "x/b.jpg": forms.png(2), "x/b.txt": b"A cat.\n",
        "x/c.json": b"{", "x/d.npy": b"?",
    }  # fmt: skip
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    rows = open_data(str(tmp_path / "data.tar"), skip_bad=True)

    assert [(row.id, seeds(row)) for row in rows] == [("x/a", [0, 1]), ("x/b", [2])]
    assert rows[1].conversations[0].question == "Describe the picture."
    assert rows[1].conversations[0].answers == ("A cat.",)
    assert [problem.problem for problem in rows.problems] == [
        f"{tmp_path}/data.tar:x/c.json:1: not JSON: Expecting property name enclosed in double "
        "quotes",
        f"{tmp_path}/data.tar:x/d: not a row",
    ]


def test_other_texts_are_other_data_also_where_files_have_the_same_size(tmp_path):
    def hash_of(answer):
        path = write(tmp_path, STORED, stored(0), name="image")
        table = parquet.read_table(path)
        place = table.column_names.index("answer")
        table = table.set_column(place, "answer", pa.array([answer]))
        parquet.write_table(table, path, compression="none")
        return open_data(path).sha256, (tmp_path / "data.parquet").stat().st_size

    (one, size), (other, same) = hash_of("this"), hash_of("that")
    assert (size, one == other) == (same, False)
