import datasets
import pytest

from tests.data import forms
from tests.data.dataset_hub import serving
from tests.tiny import tiny_picture
from victorctl.data.conversations import open_data
from victorctl.errors import VictorError

CARD = """---
configs:
- config_name: dogs
  data_files: data/train*
- config_name: cats
  data_files: data/test*
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
