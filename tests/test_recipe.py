import subprocess
import sys

import pytest
from pydantic import ValidationError

from victorctl.errors import VictorError
from victorctl.recipe import Recipe, Run, load_recipe


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recipe called r.yaml into the working directory, so that errors read `r.yaml:3`."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text):
        path = tmp_path.relative_to(tmp_path) / "r.yaml"
        path.write_text(text)
        return path

    return write_recipe


def problem(path=None, **given):
    with pytest.raises(VictorError) as caught:
        load_recipe(path, **given)
    return caught.value.problem


def test_without_anything_given_every_setting_has_its_default():
    assert load_recipe() == Recipe()
    assert Recipe().victor.registers == 8
    assert Recipe().victor.drop_layer is None


@pytest.mark.parametrize("text", ["", "# only a comment\n", "train:\n", "train: {}\n"])
def test_an_empty_file_or_section_means_the_defaults(write, text):
    assert load_recipe(write(text)) == Recipe()


def test_the_file_beats_the_default_a_setting_the_file_and_a_flag_the_setting(write):
    path = write("train: {steps: 1, rank: 1, batch_size: 1}\n")

    train = load_recipe(
        path, settings=["train.rank=2", "train.batch_size=2"], flags={"train.batch_size": 3}
    ).train

    assert (train.steps, train.rank, train.batch_size, train.questions) == (1, 2, 3, 4)


def test_the_last_of_two_settings_counts():
    assert load_recipe(settings=["seed=1", "seed=2"]).seed == 2


def test_flags_beat_the_file_also_when_zero_false_or_empty(write):
    path = write("seed: 5\ntrain: {warmup: 0.5, teacher_cache: true}\ndata: {train: a.json}\n")
    flags = {"seed": 0, "train.warmup": 0.0, "train.teacher_cache": False, "data.train": ""}

    recipe = load_recipe(path, flags=flags)

    assert recipe.seed == 0
    assert recipe.train.warmup == 0.0
    assert recipe.train.teacher_cache is False
    assert recipe.data.train == ""


def test_a_flag_of_none_was_not_given(write):
    assert load_recipe(write("seed: 5\n"), flags={"seed": None}).seed == 5


@pytest.mark.parametrize(
    ("setting", "section", "name", "value"),
    [
        ("train.learning_rate=2e-4", "train", "learning_rate", 0.0002),  # YAML 1.1 says text
        ("victor.registers=012", "victor", "registers", 12),  # YAML 1.1 says ten
        ("convert.link=no", "convert", "link", False),
        ("convert.link=true", "convert", "link", True),
        ("convert.revision=0012", "convert", "revision", "0012"),  # no number, no octal
        ("convert.revision=1e5", "convert", "revision", "1e5"),
        ("victor.drop_layer=null", "victor", "drop_layer", None),
        ("victor.drop_layer=", "victor", "drop_layer", None),
        ("data.train=''", "data", "train", ""),
        ("data.train=a=b.json", "data", "train", "a=b.json"),
    ],
)
def test_the_field_decides_what_a_value_means(write, setting, section, name, value):
    text = setting.split("=", 1)[1]
    path = write(f"{section}:\n  {name}: {text}\n")

    for recipe in (load_recipe(settings=[setting]), load_recipe(path)):
        found = getattr(getattr(recipe, section), name)
        assert (type(found), found) == (type(value), value)


def test_all_errors_of_a_file_come_at_once_each_with_its_line(write):
    path = write(
        "victor:\n"
        "  registers: 0\n"
        "  drop_after: 3\n"
        "\n"
        "train:\n"
        "  warmup_ratio: 0.1\n"
        "  rung: full\n"
        "trian: {steps: 3}\n"
        "batch_size: 4\n"
    )

    assert sorted(problem(path).splitlines()) == [
        "r.yaml:2: victor.registers: input should be greater than or equal to 1, got 0",
        "r.yaml:3: unknown key 'victor.drop_after'; did you mean 'drop_layer'?",
        "r.yaml:6: unknown key 'train.warmup_ratio'; did you mean 'warmup'?",
        "r.yaml:7: train.rung: input should be 'registers', 'register-lora' or 'lora', got full",
        "r.yaml:8: unknown key 'trian'; did you mean 'train'?",
        "r.yaml:9: unknown key 'batch_size'; did you mean 'train.batch_size' or 'eval.batch_size'?",
    ]


def test_a_key_like_no_other_gets_the_list_of_keys():
    assert problem(settings=["data.zzz=1"]) == (
        "--set data.zzz=1: unknown key 'data.zzz'; known: train, rows"
    )


def test_the_fix_names_the_command_that_lists_the_keys(write):
    with pytest.raises(VictorError, match=r"fix: victorctl recipes keys$"):
        load_recipe(settings=["zzz=1"])
    with pytest.raises(VictorError, match=r"fix: victorctl recipes keys r\.yaml$"):
        load_recipe(write("zzz: 1\n"))


def test_errors_say_whether_file_setting_or_flag_gave_the_value(write):
    path = write("train: {steps: 0, rank: 0, batch_size: 0}\n")

    found = problem(path, settings=["train.rank=-1"], flags={"train.batch_size": -2})

    assert "r.yaml:1: train.steps: " in found
    assert "--set train.rank=-1: train.rank: " in found
    assert "command line: train.batch_size: " in found
    assert found.endswith("got -2") or "got -2\n" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: 5\n", "r.yaml:1: train: input should be a section with keys of its own, got 5"),
        ("seed:\n", "r.yaml:1: seed: input should be a valid integer, got null"),
        ("seed: ''\n", "got ''"),
        ("train: {steps: yes}\n", "train.steps: input should be a valid integer"),
        ("train: {clip: .nan}\n", "train.clip: input should be a valid number"),
        ("train: {clip: nan}\n", "train.clip: input should be a finite number"),
        ("train: {cross_entropy: 0, distill: 0}\n", "r.yaml:1: train: cross_entropy and distill"),
        ("seed: 1\ntrain: {steps: 2}\nseed: 2\n", "r.yaml:3: 'seed' was already given at r.yaml:1"),
        ("train: {steps: 2, steps: 3}\n", "'train.steps' was already given at r.yaml:1"),
        ("a: &a {b: *a}\n", "r.yaml:1: unknown key 'a'"),
        ("1: 2\n", "r.yaml:1: unknown key '1'"),
        ("- seed\n", "r.yaml:1: expected keys and values, got ['seed']"),
        ("seed: 1\ntrain: {\n", "r.yaml:3: not YAML: "),
        ("seed: 1\n---\nseed: 2\n", "r.yaml:2: not YAML: "),
        ("\tseed: 1\n", "r.yaml:1: not YAML: "),
        ("seed: \x01\n", "r.yaml: not YAML: "),
        ("[1]: 2\n", "r.yaml:1: not YAML: found unhashable key"),
    ],
)
def test_bad_files_are_refused_with_the_line(write, text, message):
    assert message in problem(write(text))


def test_a_setting_does_not_hide_a_section_that_is_none(write):
    assert "r.yaml:1: train: input should be a section" in problem(
        write("train: 5\n"), settings=["train.steps=2"]
    )


@pytest.mark.parametrize("setting", ["train.steps", "=3", "train.=3", ".steps=3"])
def test_a_setting_is_a_key_and_a_value(setting):
    assert problem(settings=[setting]) == f"--set {setting}: expected a key and a value"


def test_a_setting_that_is_not_yaml_says_so():
    assert problem(settings=["seed=[1"]).startswith("--set seed=[1: not YAML: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert problem(tmp_path / "none.yaml").endswith("none.yaml: No such file or directory")
    assert problem(tmp_path).endswith("Is a directory")
    (tmp_path / "r.yaml").write_bytes(b"seed: \xff\n")
    assert problem(tmp_path / "r.yaml").endswith("is not UTF-8 text")


def test_recipes_and_runs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().seed = 1
    with pytest.raises(AttributeError):
        Run().quiet = True


def test_reading_a_recipe_imports_no_torch():
    code = "import sys, victorctl.recipe as r; r.load_recipe(); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
