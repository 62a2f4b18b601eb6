import contextlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from victorctl import recipes
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


RUNGS = (
    "registers, registers+projector, deep, deep+projector, register-lora, register-lora+projector, "
    "lora-early, lora-early+projector, lora, lora+projector, full or full+projector"
)


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


def test_all_errors_of_a_file_come_at_once_in_its_order_each_with_its_line(write):
    path = write(
        "victor:\n"
        "  registers: 0\n"
        "  drop_after: 3\n"
        "\n"
        "train:\n"
        "  warmup_ratio: 0.1\n"
        "  rung: fast\n"
        "trian: {steps: 3}\n"
        "batch_size: 4\n"
    )

    assert problem(path).splitlines() == [
        "r.yaml:2: victor.registers: expected 1 or more, got 0",
        "r.yaml:3: unknown key 'victor.drop_after'; did you mean 'victor.drop_layer'?",
        "r.yaml:6: unknown key 'train.warmup_ratio'; did you mean 'train.warmup'?",
        f"r.yaml:7: train.rung: expected {RUNGS}, got fast",
        "r.yaml:8: unknown key 'trian'; did you mean 'train'?",
        "r.yaml:9: unknown key 'batch_size'; did you mean 'train.batch_size' or 'eval.batch_size' "
        "or 'bench.batch_size'?",
    ]


def test_a_key_like_no_other_gets_the_list_of_keys():
    assert problem(settings=["data.zzz=1"]) == (
        "--set data.zzz=1: unknown key 'data.zzz'; known: train, mix, rows, skip_bad"
    )


def test_errors_come_in_file_order_whatever_their_kind(write):
    path = write("train: {clip: 0}\nseed: 1\nseed: 2\nvictor: {registers: 0}\n")

    lines = problem(path, settings=["eval.limit=0"], flags={"data.rows": 0}).splitlines()

    places = [line.split(": ")[0] for line in lines]
    assert places == ["r.yaml:1", "r.yaml:3", "r.yaml:4", "--set eval.limit=0", "--rows 0"]


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"settings": ["zzz=1"]}, "victorctl recipes keys"),
        ({"flags": {"victor.registers": 0}}, "choose 1 or more"),
        ({"flags": {"victor.registers": 0, "victor.drop_layer": 0}}, "choose 1 or more"),
        ({"flags": {"train.rung": "fast"}}, f"choose {RUNGS}"),
        ({"flags": {"victor.registers": 0, "train.rung": "fast"}},
         "correct each; the keys: victorctl recipes keys"),
        ({"settings": ["train=5"]}, "victorctl recipes keys"),
    ],
)  # fmt: skip
def test_the_fix_says_what_to_choose_or_else_which_command_lists_the_keys(given, fix):
    with pytest.raises(VictorError) as caught:
        load_recipe(**given)
    assert caught.value.fix == fix


def test_the_fix_for_a_file_can_be_typed_as_it_is(write):
    with pytest.raises(VictorError, match=r"fix: victorctl recipes keys r\.yaml$"):
        load_recipe(write("zzz: 1\n"))
    Path("my recipe.yaml").write_text("zzz: 1\n")
    with pytest.raises(VictorError, match=r"fix: victorctl recipes keys 'my recipe\.yaml'$"):
        load_recipe(Path("my recipe.yaml"))


def test_errors_say_whether_file_setting_or_flag_gave_the_value(write):
    path = write("train: {steps: 0, rank: 0, batch_size: 0}\n")

    found = problem(path, settings=["train.rank=-1"], flags={"train.batch_size": -2})

    assert found.splitlines() == [
        "r.yaml:1: train.steps: expected 1 or more, got 0",
        "--set train.rank=-1: expected 1 or more",
        "--batch-size -2: expected 1 or more",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("victor.registers", 0, "--registers 0: expected 1 or more"),
        ("victor.drop_layer", 0, "--drop-layer 0: expected 1 or more"),
        ("train.rung", "fast", f"--train fast: expected {RUNGS}"),
        ("train.steps", 0, "--steps 0: expected 1 or more"),
        ("eval.batch_size", 0, "--batch-size 0: expected 1 or more"),
        ("eval.limit", -1, "--limit -1: expected 1 or more"),
        ("seed", -1, "--seed -1: expected 0 or more"),
        ("convert.verify", "all", "--verify all: expected full, hash or none"),
    ],
)
def test_a_wrong_flag_is_named_as_it_was_typed(key, value, message):
    assert problem(flags={key: value}) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: 5\n", "r.yaml:1: train: expected a section with keys of its own, got 5"),
        ("seed:\n", "r.yaml:1: seed: expected a whole number, got null"),
        ("seed: ''\n", "r.yaml:1: seed: expected a whole number, got ''"),
        ("train: {steps: yes}\n", "train.steps: expected a whole number, got yes"),
        ("train: {steps: 1.5}\n", "train.steps: expected a whole number, got 1.5"),
        ("train: {clip: .nan}\n", "train.clip: expected a number, got .nan"),
        ("train: {clip: nan}\n", "train.clip: expected a finite number, got nan"),
        ("train: {clip: 0}\n", "train.clip: expected more than 0, got 0"),
        ("train: {warmup: 2}\n", "train.warmup: expected 1 or less, got 2"),
        ("convert: {link: 2}\n", "convert.link: expected true or false, got 2"),
        ("data: {train: [a]}\n", "data.train: expected text, got ['a']"),
        (
            "train: {cross_entropy: 0, distill: 0}\n",
            "r.yaml:1: train: cross_entropy, distill and",
        ),
        ("seed: 1\ntrain: {steps: 2}\nseed: 2\n", "r.yaml:3: 'seed' was already given at r.yaml:1"),
        ("train: {steps: 2, steps: 3}\n", "'train.steps' was already given at r.yaml:1"),
        ("a: &a {b: *a}\n", "r.yaml:1: unknown key 'a'"),
        ("1: 2\n", "r.yaml:1: unknown key '1'"),
        ("- seed\n", "r.yaml:1: expected keys and values, got ['seed']"),
    ],
)
def test_bad_values_are_refused_with_the_line(write, text, message):
    assert message in problem(write(text))


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("seed: 1\ntrain: {\n", "r.yaml:3: brackets or commas that do not match", "close every {"),
        ("data: [1, 2\nseed: 3\n", "r.yaml:2: brackets or commas that do not match", "close"),
        ("seed: ]\n", "r.yaml:1: brackets or commas that do not match", "close every"),
        ("train:\n\tsteps: 1\n", "r.yaml:2: a tab, where YAML takes spaces", "replace the tab"),
        ("victor:\n  registers: 8\n drop_layer: 2\n",
         "r.yaml:3: a line that does not fit those above it", "write one `key: value` on each"),
        ("seed: 1\n  train: 2\n", "r.yaml:2: a line that does not fit those above it", "write one"),
        ("data: {train: a\n", "r.yaml:2: brackets", "close every"),
        ("data: a: b\n", "r.yaml:1: a line that does not fit those above it", "quote a value"),
        ("seed: 1\nlimit\n", "r.yaml:2: a key without a colon", "write one `key: value`"),
        ("a: 'x\nb: 2\n", "r.yaml:1: a quote that is never closed", "close the quote"),
        ('a: "C:\\q"\n', "r.yaml:1: a backslash inside double quotes", "use single quotes"),
        ("a: @x\n", "r.yaml:1: a value starts with @", "put the value in quotes"),
        ("a: *x\n", "r.yaml:1: a value starts with *", "put the value in quotes"),
        ("seed: 1\n---\nseed: 2\n", "r.yaml:2: a second recipe in one file", "remove the `---`"),
        ("seed: 1\nb: \x01\n", "r.yaml:2: a control character (0x01)", "remove the character"),
        ("[1]: 2\n", "r.yaml:1: YAML that recipes have no use for", "write plain keys"),
        ("seed: !!int x\n", "r.yaml:1: YAML that recipes have no use for", "write plain keys"),
        ("%YAML 3.0\n---\n", "r.yaml:1: not YAML", "write one `key: value` on each line"),
    ],
)  # fmt: skip
def test_bad_yaml_is_told_in_plain_words_with_the_line_and_a_way_out(write, text, message, fix):
    with pytest.raises(VictorError) as caught:
        load_recipe(write(text))
    assert caught.value.problem.startswith(message)
    assert fix in caught.value.fix


def test_there_are_words_for_whatever_a_value_can_be_wrong_in():
    wrong = ["x", "", "-1", "1.5", "nan", "9" * 5000, None, [1], {"a": 1}, 0, -1, 2.5, 1e400]
    for row, value in itertools.product(recipes.describe(), wrong):
        with contextlib.suppress(VictorError):
            load_recipe(flags={row["key"]: value})


def test_a_setting_does_not_hide_a_section_that_is_none(write):
    assert "r.yaml:1: train: expected a section" in problem(
        write("train: 5\n"), settings=["train.steps=2"]
    )


@pytest.mark.parametrize("setting", ["train.steps", "=3", "train.=3", ".steps=3"])
def test_a_setting_is_a_key_and_a_value(setting):
    assert problem(settings=[setting]) == f"--set {setting}: expected a key and a value"


def test_a_setting_that_is_not_yaml_says_so():
    assert problem(settings=["seed=[1"]) == "--set seed=[1: brackets or commas that do not match"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert problem(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such file or directory"
    assert problem(tmp_path) == f"{tmp_path}: a folder, not a recipe"
    (tmp_path / "r.yaml").write_bytes(b"seed: 1\ndata: {train: \xff}\n")
    with pytest.raises(VictorError, match=r"r\.yaml:2: not UTF-8 text\n  fix: save the file as"):
        load_recipe(tmp_path / "r.yaml")


def test_recipes_and_runs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().seed = 1
    with pytest.raises(AttributeError):
        Run().quiet = True


def test_reading_a_recipe_imports_no_torch():
    code = "import sys, victorctl.recipe as r; r.load_recipe(); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
