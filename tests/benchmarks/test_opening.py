"""A benchmark's data, found and read whatever their form."""

import subprocess
import sys
from dataclasses import replace

import datasets
import pytest

from tests.benchmarks import storage
from tests.data.dataset_hub import serving
from tests.tiny import tiny_picture
from victorctl.benchmarks import BENCHMARKS
from victorctl.benchmarks.opening import open_benchmark
from victorctl.benchmarks.vqav2 import VQAv2
from victorctl.data.formats import listed
from victorctl.data.rows import open_picture

TEXTS = ("jsonl", "json", "csv")
WIDE = ("vqav2", "gqa")  # a list of structs; a struct, and pictures that are stored apart


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def opened(name, data_dir, limit=None, quiet=True):
    return open_benchmark(name, data_dir=data_dir, limit=limit, quiet=quiet)


def seeds(one):
    """Tell by their pixels which pictures a question shows."""
    known = {tiny_picture(seed).tobytes(): f"{seed}.png" for seed in range(4)}
    return [known[open_picture(image).tobytes()] for image in one.images]


def ids(questions):
    return [one.id for one in questions.asked]


def asks_the_same(name, form, data_dir):
    found = opened(name, storage.store(name, data_dir, form))
    pictures = {row["id"]: row["image"] for row in storage.rows("gqa.beside")}
    wanted = list(storage.asked(name))

    assert len(found.asked) == len(wanted) >= 2
    for number, (one, (row, direct)) in enumerate(zip(found.asked, wanted, strict=True)):
        unit = one.unit if direct.unit is None else direct.unit
        told = replace(direct, id=direct.id or str(number), unit=unit)
        assert replace(one, images=()) == replace(told, images=())
        if "image" in row or "imageId" in row:
            assert seeds(one) == listed(row.get("image") or pictures[row["imageId"]])
    assert len({*ids(found)}) == len(found.asked)


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_text_with_files_of_pictures_asks_what_the_hub_asks(name, form, tmp_path):
    asks_the_same(name, form, tmp_path)


@pytest.mark.parametrize("form", sorted({*storage.FORMS} - {*TEXTS}))
@pytest.mark.parametrize("name", WIDE)
def test_stored_pictures_ask_what_the_hub_asks(name, form, tmp_path):
    asks_the_same(name, form, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted({*storage.FORMS} - {*TEXTS}))
@pytest.mark.parametrize("name", sorted({*BENCHMARKS} - {*WIDE}))
def test_stored_pictures_of_all_others_do(name, form, tmp_path):
    asks_the_same(name, form, tmp_path)


def test_one_file_of_the_name_will_do(tmp_path):
    storage.store("chartqa", tmp_path, "jsonl")
    (tmp_path / "chartqa" / "data.jsonl").rename(tmp_path / "chartqa.jsonl")
    for picture in (tmp_path / "chartqa").iterdir():
        picture.rename(tmp_path / picture.name)
    (tmp_path / "chartqa").rmdir()

    assert ids(opened("chartqa", tmp_path)) == ["0", "1", "2"]


def test_of_a_whole_download_the_split_and_the_configuration_are_read(tmp_path):
    rows, home = storage.rows("docvqa"), tmp_path / "docvqa"
    storage.store("docvqa", tmp_path, "parquet")
    storage.parquet(home / "DocVQA", "test", [row | {"questionId": "t"} for row in rows])
    (home / "InfographicVQA").mkdir()
    storage.parquet(home / "InfographicVQA", "validation", storage.rows("infovqa"))
    (home / "README.md").write_text("---\nlicense: mit\n---\n")
    (home / ".cache").mkdir()
    (home / ".cache" / "validation.json").write_text("{}")

    assert ids(opened("docvqa", tmp_path)) == ["49153", "24580", "24581"]


@pytest.mark.parametrize("others", [("dev", "test"), ("val",), ("train",)])
def test_the_split_of_that_very_name_is_read(others, tmp_path):
    rows = storage.rows("vqav2")
    for split in ("validation", *others):
        own = rows if split == "validation" else [row | {"question_id": 7} for row in rows[:1]]
        storage.json_list(home(tmp_path, "vqav2"), split, own)

    assert ids(opened("vqav2", tmp_path)) == ["42000", "42001", "77000"]


def home(data_dir, name):
    (data_dir / name).mkdir(exist_ok=True)
    return data_dir / name


def test_another_name_for_the_split_will_do(tmp_path):
    storage.json_list(home(tmp_path, "vqav2"), "val", storage.rows("vqav2"))

    assert len(opened("vqav2", tmp_path).asked) == 3


def test_only_the_first_questions_are_taken(tmp_path):
    storage.store("vqav2", tmp_path, "jsonl")

    assert ids(opened("vqav2", tmp_path, limit=2)) == ["42000", "42001"]
    assert len(opened("vqav2", tmp_path, limit=9).asked) == 3


def test_rows_that_ask_nothing_do_not_count(tmp_path, monkeypatch):
    ask = VQAv2.ask
    some = lambda own, row: None if row["question_id"] == 42000 else ask(own, row)  # noqa: E731
    monkeypatch.setattr(VQAv2, "ask", some)
    storage.store("vqav2", tmp_path, "jsonl")

    assert ids(opened("vqav2", tmp_path, limit=1)) == ["42001"]
    assert ids(opened("vqav2", tmp_path)) == ["42001", "77000"]


def test_of_questions_that_are_marked_together_all_are_taken(tmp_path, capsys):
    first, second, *rotated = storage.rows("mmbench-circular")  # of the first 3, of the second 2
    mme = storage.rows("mme")
    storage.store("mmbench-circular", tmp_path, own=[first, second, *rotated])
    storage.store("mme", tmp_path, own=[*mme[:3], *mme[4:6], mme[3]])

    assert ids(opened("mmbench-circular", tmp_path, limit=1)) == ["241", "1000241", "2000241"]
    assert len(opened("mmbench-circular", tmp_path, limit=2).asked) == 5
    assert {one.unit for one in opened("mme", tmp_path, limit=2).asked} == {
        ("existence", "existence/0000.jpg")
    }
    cut = opened("mme", tmp_path, limit=3, quiet=False).asked
    assert [one.type for one in cut] == ["existence", "existence", "count", "count"]
    said = "mme: JSON lines; 4 questions: 3, and those marked with them\n"
    assert capsys.readouterr().err == said


def test_a_picture_of_several_questions_may_be_cut_where_each_is_marked_by_itself(tmp_path):
    storage.store("vqav2", tmp_path)  # the first two of three are about one picture
    storage.store("mmbench", tmp_path)

    assert ids(opened("vqav2", tmp_path, limit=1)) == ["42000"]
    assert ids(opened("mmbench", tmp_path, limit=1)) == ["241"]


def test_pictures_are_found_by_their_names_in_whatever_order(tmp_path):
    storage.store("gqa", tmp_path, "parquet", beside=storage.rows("gqa.beside")[::-1])

    found = opened("gqa", tmp_path)
    assert [seeds(one) for one in found.asked] == [["0.png"], ["1.png"], ["0.png"]]
    assert [one.unit for one in found.asked] == ["n161313", "n235859", "n161313"]


def test_a_row_may_have_its_picture_itself(tmp_path):
    rows = [row | {"image": "2.png"} for row in storage.rows("gqa")]
    storage.jsonl(home(tmp_path, "gqa"), "testdev", rows)

    assert [seeds(one) for one in opened("gqa", tmp_path).asked] == [["2.png"]] * 3


def test_questions_about_the_same_picture_are_one_unit_whatever_its_name(tmp_path):
    rows = storage.rows("chartqa")
    for number, row in enumerate(rows):
        row["image"] = f"{number}.png"
    storage.store("chartqa", tmp_path, "jsonl", own=rows)
    (tmp_path / "chartqa" / "1.png").write_bytes((tmp_path / "chartqa" / "0.png").read_bytes())

    first, second, third = (one.unit for one in opened("chartqa", tmp_path).asked)
    assert first == second != third


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_other_texts_are_other_data(form, tmp_path):
    rows = storage.rows("gqa")
    changed = [rows[0] | {"answer": "on"}, *rows[1:]]
    moved = [row | {"id": f"{row['id']}x"} for row in storage.rows("gqa.beside")[2:]]
    beside = storage.rows("gqa.beside")[:2]
    made = ({}, {}, {"own": changed}, {"beside": [*beside, *moved]})
    hashes = [
        opened("gqa", storage.store("gqa", tmp_path / str(number), form, **how)).sha256
        for number, how in enumerate(made)
    ]

    assert hashes[0] == hashes[1]
    assert len({*hashes}) == 3


def test_what_was_read_is_said(tmp_path, capsys):
    storage.store("chartqa", tmp_path, "jsonl")
    opened("chartqa", tmp_path, quiet=False)

    assert capsys.readouterr() == ("", "chartqa: JSON lines; 3 questions\n")


def test_opening_needs_no_torch():
    modules = [f"victorctl.benchmarks.{place.partition(':')[0]}" for place in BENCHMARKS.values()]
    imported = ", ".join(["sys", "victorctl.benchmarks.opening", *modules])
    code = f"import {imported}; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "False\n"


CARD = """---
configs:
- config_name: testdev_balanced_instructions
  data_files: [{split: testdev, path: testdev_balanced_instructions/data/testdev-*}]
- config_name: testdev_balanced_images
  data_files: [{split: testdev, path: testdev_balanced_images/data/testdev-*}]
---
"""


def test_the_hub_is_asked_where_there_is_no_copy(tmp_path, monkeypatch):
    for name in ("gqa", "vqav2"):
        storage.store(name, tmp_path, "parquet")
    (tmp_path / "gqa" / "README.md").write_text(CARD)
    storage.parquet(tmp_path / "vqav2", "test", storage.rows("vqav2")[:1])
    folders = {
        "lmms-lab-encoder/GQA": tmp_path / "gqa",
        "lmms-lab-encoder/VQAv2": tmp_path / "vqav2",
    }
    with serving(monkeypatch, tmp_path / "cache", folders):
        gqa, vqav2 = opened("gqa", None), opened("vqav2", None, limit=2)

    assert [seeds(one) for one in gqa.asked] == [["0.png"], ["1.png"], ["0.png"]]
    assert gqa.form == "split testdev of lmms-lab-encoder/GQA on the Hub"
    assert ids(vqav2) == ["42000", "42001"]
