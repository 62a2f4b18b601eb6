from pathlib import Path

import pytest

from victorctl import recipes
from victorctl.errors import VictorError
from victorctl.recipe import load_recipe

SHIPPED = [
    *("demo/lora", "demo/quick", "demo/registers", "demo/victor", "llava-1.5-13b/victor"),
    *(f"llava-1.5-7b/{name}" for name in ("paper-stage-1", "paper-stage-2", "victor")),
    *("llava-onevision-qwen2-7b/victor", "llava-v1.6-mistral-7b/victor", "smol/victor"),
]
BESIDE = ["accelerate/ddp", "accelerate/fsdp2"]  # configurations that accelerate reads


def test_every_recipe_that_ships_is_found_and_valid():
    found = recipes.names()

    assert list(found) == SHIPPED
    for name, file in found.items():
        keeps = load_recipe(file).train.keeps_base
        assert keeps == (name != "demo/lora" and "paper" not in name), name
    with pytest.raises(VictorError, match="accelerate/ddp: neither a file nor one of our recipes"):
        recipes.find("accelerate/ddp")


def test_the_papers_own_training_has_no_teacher_no_decay_and_its_two_rates():
    one, two = (load_recipe(recipes.find(f"llava-1.5-7b/paper-stage-{n}")).train for n in (1, 2))

    assert (one.rung, two.rung) == ("registers+projector", "full+projector")
    assert {one.base_learning_rate, one.learning_rate, one.register_learning_rate} == {1e-4, None}
    assert {two.base_learning_rate, two.learning_rate, two.register_learning_rate} == {2e-5, None}
    for stage in (one, two):
        assert (stage.distill, stage.weight_decay, stage.cross_entropy) == (0, 0, 1)


def test_a_recipe_says_in_its_first_line_what_it_does():
    summaries = recipes.summaries()

    assert [row["name"] for row in summaries] == BESIDE + SHIPPED
    assert all(row["about"].endswith(".") for row in summaries)


def test_an_installed_package_looks_inside_itself(tmp_path, monkeypatch):
    inside = tmp_path / "victorctl" / "_recipes" / "demo"
    inside.mkdir(parents=True)
    (inside / "victor.yaml").write_text("# Inside.\n")
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "victorctl" / "recipes.py"))

    assert recipes.names() == {"demo/victor": inside / "victor.yaml"}


def test_a_file_is_found_before_a_recipe_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.find("demo/victor") == recipes.folder() / "demo" / "victor.yaml"

    (tmp_path / "demo" / "victor").mkdir(parents=True)  # a model folder, say
    assert recipes.find("demo/victor") == recipes.folder() / "demo" / "victor.yaml"
    assert recipes.find("demo") == Path("demo")  # reading it says that it is a folder

    (tmp_path / "demo" / "victor").rmdir()
    (tmp_path / "demo" / "victor").write_text("seed: 1\n")
    assert recipes.find("demo/victor") == Path("demo/victor")

    with pytest.raises(
        VictorError, match=r"no\.yaml: neither a file nor.*\n.*demo/lora, demo/quick"
    ):
        recipes.find("no.yaml")


def test_copies_into_the_working_directory_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()

    def copy(out, overwrite=False):
        return recipes.copy("demo/victor", out=out, overwrite=overwrite)

    assert copy(None) == Path("victor.yaml")
    assert copy(Path("mine.yaml")) == Path("mine.yaml")
    assert copy(Path("folder")) == Path("folder/victor.yaml")
    assert Path("mine.yaml").read_text() == recipes.names()["demo/victor"].read_text()

    Path("mine.yaml").write_text("changed")
    with pytest.raises(VictorError, match=r"mine\.yaml exists\n  fix: give another --out"):
        copy(Path("mine.yaml"))
    assert Path("mine.yaml").read_text() == "changed"
    assert copy(Path("mine.yaml"), overwrite=True).read_text() != "changed"

    with pytest.raises(VictorError, match=r"no/such/r\.yaml: no such file .*\n  fix: give another"):
        copy(Path("no/such/r.yaml"))
    with pytest.raises(VictorError, match="no recipe called 'victor'\n  fix: use one of: accel"):
        recipes.copy("victor", out=None, overwrite=False)


def test_explains_each_key_with_type_range_default_and_meaning():
    rows = {row["key"]: row for row in recipes.describe()}

    assert rows["train.rank"] == {
        "key": "train.rank",
        "type": "whole number ≥ 1",
        "default": 32,
        "meaning": "Rank of the low-rank updates.",
    }
    assert rows["train.warmup"]["type"] == "number ≥ 0 ≤ 1"
    assert rows["train.alpha"]["type"] == "number > 0, or null"
    assert rows["victor.positions"]["type"] == "overlay | append"
    assert rows["convert.link"]["type"] == "true | false"
    assert rows["data.train"]["type"] == "text, or null"
    assert rows["data.mix"]["type"] == "mapping of text to number > 0, or null"
    assert rows["eval.benchmarks"]["type"] == "list of text, or null"


def test_every_key_has_a_meaning():
    rows = recipes.describe()

    assert len(rows) == 78
    assert all(row["meaning"].endswith((".", "?")) for row in rows)


def test_shows_what_a_file_gives_even_if_it_is_not_valid(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seed: many\ntrain: {rank: 4}\ndata: 5\ntypo: 1\n")

    here = {row["key"]: row["here"] for row in recipes.explain(path)}

    assert (here["seed"], here["train.rank"]) == ("many", "4")
    assert here["train.steps"] is None
    assert here["data.train"] is None
    assert "here" not in recipes.explain(None)[0]
