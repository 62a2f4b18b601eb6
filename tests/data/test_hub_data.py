import datasets
import pytest

from tests.data import forms
from tests.data.dataset_hub import serving
from tests.tiny import tiny_picture
from victorctl.data.conversations import open_data
from victorctl.data.records import Spec
from victorctl.data.tables import open_hub
from victorctl.errors import VictorError

CARD = """---
configs:
- config_name: dogs
  data_files: data/train*
- config_name: cats
  data_files: data/test*
---
"""
SIZED = """---
configs:
- config_name: birds
  data_files:
  - {split: train, path: data/train*}
  - {split: other, path: data/test*}
dataset_info:
  config_name: birds
  features:
  - {name: image, dtype: image}
  - {name: question, dtype: string}
  - {name: answer, dtype: string}
  splits:
  - {name: train, num_bytes: 9, num_examples: 2}
  - {name: other, num_bytes: 9, num_examples: 2}
---
"""


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A Hub with parquet files of two splits, and the same with two configurations."""
    datasets.disable_progress_bars()
    forms.parquet_folder(tmp_path / "pets")
    forms.parquet_folder(tmp_path / "kinds")
    (tmp_path / "kinds" / "README.md").write_text(CARD)
    folders = {"ada/pets": tmp_path / "pets", "ada/kinds": tmp_path / "kinds"}
    with serving(monkeypatch, tmp_path / "cache", folders) as hub:
        yield hub


def problem(spec, **how):
    with pytest.raises(VictorError) as error:
        open_data(spec, **how)
    return error.value


def test_a_hub_id_is_fetched_split_by_split(pets):
    rows = open_data("ada/pets")

    assert rows.form == "split train of ada/pets on the Hub: questions with answers"
    assert [row.id for row in rows] == ["0", "1"]
    assert rows[0].pictures()[0].tobytes() == tiny_picture(0).tobytes()
    assert str(rows[0].images[0]) == "ada/pets:train[0], image"
    assert open_data("ada/pets:test").sha256 != rows.sha256


@pytest.mark.parametrize("rows", [None, 1])
def test_of_several_splits_only_one_is_fetched_and_kept(pets, tmp_path, rows):
    (pets.folders["ada/kinds"] / "README.md").write_text(SIZED)
    open_data("ada/pets:test", rows=rows)
    open_data("ada/kinds/birds:other", rows=rows)  # whose card tells of more splits

    kept = {file.name for file in (tmp_path / "cache" / "datasets").rglob("*.arrow")}
    assert kept == ({"generator-train.arrow"} if rows else {"pets-test.arrow", "kinds-other.arrow"})
    fetched = [name for name, _ in pets.fetched if name.endswith(".parquet")]
    assert {*fetched} == {"test-00000-of-00001.parquet"}

    assert len(open_data("ada/pets", rows=rows)) == (rows or 2)  # the other one, later


def test_columns_are_of_the_types_that_the_card_tells(pets):
    folder = pets.folders["ada/kinds"]
    card = SIZED.replace("train*", "more.jsonl").replace("test*", "more.jsonl")
    (folder / "README.md").write_text(card)
    (folder / "data" / "more.jsonl").write_text('{"question": "How many?", "answer": 7}\n')

    for rows in (None, 1):
        (record,) = open_hub(Spec("ada/kinds/birds", "other", None), rows).records
        assert record.value["answer"] == "7"


def test_only_so_many_rows_are_fetched_and_kept(pets):
    for number in range(2, 8):
        name = f"train-{number:05}-of-00008.parquet"
        forms.vqa().to_parquet(pets.folders["ada/pets"] / "data" / name)
    few = open_data("ada/pets", rows=1)

    assert (len(few), few[0].pictures()[0].size) == (1, (32, 32))
    assert len({name for name, _ in pets.fetched}) <= 2  # of eight; one is read ahead
    pets.fetched.clear()
    assert len(open_data("ada/pets", rows=1)) == 1
    assert len(pets.fetched) <= 1  # which columns there are


def test_another_commit_is_other_data(pets):
    first = open_data("ada/pets", rows=1).sha256
    assert open_data("ada/pets", rows=1).sha256 == first

    pets.commit = "beef" + 36 * "0"
    assert open_data("ada/pets", rows=1).sha256 != first


def test_a_configuration_stands_behind_the_name(pets):
    assert open_data("ada/kinds/dogs").form.startswith("split train of ada/kinds on the Hub")
    assert [row.id for row in open_data("ada/kinds/cats:train")] == ["0", "1"]

    missing = problem("ada/kinds")
    assert "Config name is missing" in missing.problem
    assert missing.fix == "name a configuration: ada/kinds/CONFIGURATION"
    assert "'birds' not found" in problem("ada/kinds/birds").problem


def test_what_the_hub_does_not_have_is_said(pets):
    assert problem("ada/none").problem.startswith("ada/none: Dataset 'ada/none' doesn't exist")
    assert problem("ada/pets:none").problem == "ada/pets: no split 'none'"


def test_of_several_splits_that_to_measure_on_must_be_named(pets):
    assert problem("ada/pets", split=None).fix == "use one of: ada/pets:train, ada/pets:test"
