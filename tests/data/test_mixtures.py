import json

import pytest

from tests.data import forms
from victorctl.data.mixtures import mix, open_training, parts
from victorctl.data.rows import Conversation, Row, Rows
from victorctl.errors import VictorError
from victorctl.recipe import load_recipe
from victorctl.sections import DataSection

SAID = Conversation(({"role": "user", "content": []}, {"role": "assistant", "content": []}))


def rows(name, size, *, talks=1, texts=()):
    """Rows with names such as a3; those of `texts` have no picture, and one conversation."""

    def make(index):
        count = 1 if index in texts else talks
        return Row(f"{name}{index}", (), (SAID,) * count)

    shown = [index for index in range(size) if index not in texts]
    return Rows(make, size, len(shown) * talks + len(texts), shown, name, name)


def names(mixed):
    return [row.id for row in mixed]


def test_a_weight_is_how_often_each_row_comes():
    mixed = mix([rows("a", 2), rows("b", 3)], [2, 1], 0)

    assert names(mixed) == ["a0", "a1", "a0", "a1", "b0", "b1", "b2"]
    assert (mixed[-1].id, mixed.form) == ("b2", "a + b")


def test_a_part_of_a_weight_is_a_part_of_the_rows_drawn_by_the_seed():
    def drawn(seed):
        return names(mix([rows("a", 100)], [1.25], seed))

    first = drawn(0)
    assert first[:100] == [f"a{index}" for index in range(100)]
    assert len(first[100:]) == len({*first[100:]}) == 25
    assert (drawn(0) == first, drawn(1) == first) == (True, False)


@pytest.mark.parametrize(("weight", "size"), [(0.75, 75), (1.0, 100), (1.9, 190), (0.004, 0)])
def test_so_many_rows_come_as_the_weight_says(weight, size):
    assert len(mix([rows("a", 100), rows("b", 1)], [weight, 1], 0)) == size + 1


def test_a_mixture_knows_its_pictures_and_conversations():
    mixed = mix([rows("a", 3, talks=4, texts=[1]), rows("b", 2, texts=[0])], [1.5, 2], 3)
    shown = mixed.with_pictures()

    assert mixed.conversations == sum(len(row.conversations) for row in mixed)
    assert shown.conversations == sum(len(row.conversations) for row in shown)
    assert names(shown) == [name for name in names(mixed) if name not in ("a1", "b0")]


def test_other_weights_or_data_are_another_mixture():
    def hash_of(weights, name="b"):
        return mix([rows("a", 4), rows(name, 4)], weights, 0).sha256

    assert hash_of([1, 1]) == hash_of([1, 1])
    assert len({hash_of([1, 1]), hash_of([1, 2]), hash_of([1, 1], "c")}) == 3


def test_a_recipe_and_a_file_may_name_several(tmp_path):
    forms.llava(tmp_path / "llava")
    forms.metadata_csv(tmp_path / "folder")
    (tmp_path / "mix.yaml").write_text("llava/data.json: 2\nfolder: 0.5\ndemo: 1\n")
    file = DataSection(train=str(tmp_path / "mix.yaml"), rows=4)
    wanted = {str(tmp_path / "llava/data.json"): 2, str(tmp_path / "folder"): 0.5, "demo": 1}

    assert parts(file) == wanted  # paths are relative to the file; demo is none
    assert len(open_training(file, seed=0)) == 2 * 2 + 1 + 4
    given = load_recipe(settings=[f"data.mix={json.dumps(wanted)}", "data.rows=4"]).data
    assert open_training(given, seed=0).sha256 == open_training(file, seed=0).sha256


def test_data_train_is_taken_before_a_mixture():
    data = DataSection(train="demo", mix={"demo:test": 1}, rows=3)

    assert names(open_training(data, seed=0)) == ["train-0", "train-1", "train-2"]


def test_what_models_are_measured_with_is_in_no_mixture():
    with pytest.raises(VictorError, match="demo:test holds the questions that models are measured"):
        open_training(DataSection(mix={"demo": 1, "demo:test": 1}), seed=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.json: many\n", ":1: a.json: no weight: many"),
        ("demo: 1\na.json: 0\n", ":2: a.json: no weight: 0"),
        ("a.json: {b: 1}\n", ":1: a.json: no weight: {'b': '1'}"),
        ("", ": a mixture without data"),
    ],
)
def test_a_file_that_is_no_mixture_is_said(tmp_path, text, found):
    path = tmp_path / "mix.yaml"
    path.write_text(text)

    with pytest.raises(VictorError) as error:
        parts(DataSection(train=str(path)))
    assert error.value.problem == f"{path}{found}"


def test_a_weight_that_leaves_no_row_is_said():
    with pytest.raises(VictorError, match="no row is left of the data"):
        mix([rows("a", 2)], [0.1], 0)


def test_a_weight_in_a_recipe_is_above_zero():
    with pytest.raises(VictorError, match="expected more than 0"):
        load_recipe(settings=["data.mix={a.json: 0}"])
    with pytest.raises(VictorError, match=r"expected data with their weights, such as"):
        load_recipe(settings=["data.mix=a.json"])
