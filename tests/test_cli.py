import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from victorctl import __version__, cli, groups, looks
from victorctl.__main__ import main
from victorctl.errors import CheckFailed, VictorError
from victorctl.recipe import Recipe, Run
from victorctl.sources import DEMO

COMMANDS = [
    *"demo convert finetune eval compare push pull inspect show diff".split(),
    *"methods families doctor data recipes bench".split(),
]


@pytest.fixture
def stages(monkeypatch):
    """Put stand-ins for all stages; they keep what they were called with."""
    calls = {}

    def stand_in(module, name, result):
        def stage(*given, **named):
            calls[name] = (given, named)
            return result

        fake = ModuleType(f"victorctl.{module}")
        setattr(fake, name, stage)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)

    stand_in("convert", "convert", {"out": "o", "family": "llava"})
    stand_in("finetune", "finetune", {"out": "o", "steps": 3})
    stand_in("evaluate", "evaluate", {"accuracy": {"model": 0.5}, "report": "o/eval/report.html"})
    stand_in("inspect", "inspect", {"family": "llava", "victor": None})
    stand_in("push", "push", {"repo": "ada/victor", "files": []})
    sys.modules["victorctl.push"].table = lambda _result: "the table"
    sys.modules["victorctl.push"].after = lambda _result: ["pull", "ada/victor", "--out", "FOLDER"]
    stand_in("pull", "pull", {"out": "o"})
    stand_in("show", "show", {"picture": "cat-victor.png", "answers": {"model": "a cat"}})
    sys.modules["victorctl.show"].table = lambda _result: "the table"
    stand_in("diff", "diff", {"first": "a/report.json", "notes": []})
    stand_in("beside", "table", "the table")
    stand_in("demo", "demo", {"folder": "d", "eval": {"accuracy": 0.5}})
    stand_in("bench_train", "train", {"seconds": {"naive": 1.5}})
    stand_in("bench", "bench", {"seconds": {"prefill": {"model": 1.5}}})
    stand_in("speeds", "table", "the table")
    stand_in("compare", "compare", {"rows": [], "plot": "o/compare/pareto.png"})
    stand_in("standings", "table", "the table")
    stand_in("ways", "describe", {"methods": [{"method": "fastv"}]})
    stand_in("families", "describe", {"families": [{"family": "llava"}]})
    stand_in("report", "table", "the table")
    stand_in("data.showing", "show", {"rows": []})
    stand_in("data.checking", "check", {"bad": 2})
    for name in ("showing", "checking"):
        sys.modules[f"victorctl.data.{name}"].table = lambda _result: "the table"
    sys.modules["victorctl.data.checking"].demand = lambda result: calls.update(demanded=result)
    return calls


def failing(monkeypatch, error):
    def stage(*_given, **_named):
        raise error

    fake = ModuleType("victorctl.inspect")
    fake.inspect = stage
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


@pytest.mark.parametrize(
    ("error", "code"), [(VictorError("m: no folder", fix="give one"), 1),
                        (CheckFailed("m: no folder", fix="give one"), 3)]
)  # fmt: skip
def test_an_error_that_can_be_fixed_is_two_lines_and_a_code(victorctl, monkeypatch, error, code):
    failing(monkeypatch, error)
    assert victorctl("inspect", "m") == (code, "", "error: m: no folder\n  fix: give one\n")


def test_ctrl_c_leaves_with_130(victorctl, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    assert victorctl("inspect", "m")[0] == 130


def test_any_other_error_keeps_its_traceback(monkeypatch):
    failing(monkeypatch, ValueError("ours"))
    monkeypatch.setattr(sys, "argv", ["victorctl", "inspect", "m"])
    with pytest.raises(ValueError, match="ours"):
        main()


@pytest.mark.parametrize("arguments", [["konvert"], ["convert"], ["inspect", "m", "--no-such"]])
def test_wrong_usage_leaves_with_2_and_an_empty_stdout(victorctl, arguments):
    code, out, err = victorctl(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: victorctl" in err


def test_a_wrong_setting_is_reported_before_the_stage_is_imported(victorctl, monkeypatch):
    monkeypatch.setitem(sys.modules, "victorctl.convert", None)  # importing it would raise
    code, out, err = victorctl("convert", "m", "--out", "o", "--registers", "0")
    assert (code, out) == (1, "")
    assert err == ("error: --registers 0: expected 1 or more\n  fix: choose 1 or more\n")


def test_without_options_a_stage_gets_the_defaults_of_recipe_and_run(victorctl, stages):
    assert victorctl("convert", "m", "--out", "o")[0] == 0
    assert stages["convert"] == (("m",), {"recipe": Recipe(), "run": Run(out=Path("o"))})

    assert victorctl("finetune", "m", "--out", "o")[0] == 0
    assert stages["finetune"] == ((Path("m"),), {"recipe": Recipe(), "run": Run(out=Path("o"))})

    assert victorctl("eval", "m")[0] == 0
    assert stages["evaluate"] == ((Path("m"),), {"recipe": Recipe(), "run": Run()})

    assert victorctl("demo")[0] == 0
    assert stages["demo"] == ((), {"run": Run(), "steps": None})


def test_every_option_of_convert_arrives(victorctl, stages):
    victorctl(
        *"convert m --out o --registers 4 --drop-layer 3 --positions append".split(),
        *"--init embeddings --seed 0 --revision v1 --dtype bf16 --verify none --link".split(),
        *"--dry-run --overwrite --device cpu --attn eager --threads 1 --set eval.limit=5".split(),
    )
    recipe, run = stages["convert"][1].values()

    assert recipe == Recipe.model_validate(
        {
            "victor": {
                "registers": 4,
                "drop_layer": 3,
                "positions": "append",
                "init": "embeddings",
            },
            "convert": {"revision": "v1", "dtype": "bf16", "verify": "none", "link": True},
            "eval": {"limit": 5},
        }
    )
    assert run == Run(
        out=Path("o"), overwrite=True, dry_run=True, device="cpu", attn="eager", threads=1
    )


def test_every_option_of_finetune_arrives(victorctl, stages):
    victorctl(
        *"finetune m --out o --data demo --train lora --steps 3 --batch-size 2 --seed 1".split(),
        *"--set train.rank=4 --set train.alpha=8 --skip-bad --resume --dry-run --overwrite".split(),
        *"--device cpu --dtype fp32 --attn eager --threads 2".split(),
    )
    recipe, run = stages["finetune"][1].values()

    train = {"rung": "lora", "steps": 3, "batch_size": 2, "rank": 4, "alpha": 8}
    data = {"train": "demo", "skip_bad": True}
    assert recipe == Recipe.model_validate({"seed": 1, "train": train, "data": data})
    assert run == Run(
        out=Path("o"), overwrite=True, dry_run=True, resume=True,
        device="cpu", dtype="fp32", attn="eager", threads=2,
    )  # fmt: skip


def test_every_option_of_eval_and_demo_arrives(victorctl, stages):
    victorctl(
        *"eval m --data demo:test --base none --baselines --limit 9 --batch-size 3".split(),
        *"--seed 2 --set eval.repeats=1 --out o".split(),
        *"--device cpu --dtype bf16 --attn eager --threads 2".split(),
    )
    recipe, run = stages["evaluate"][1].values()
    measured = {"data": "demo:test", "baselines": True, "limit": 9, "batch_size": 3, "repeats": 1}
    assert recipe == Recipe.model_validate({"seed": 2, "eval": measured})
    assert run == Run(
        out=Path("o"), base="none", device="cpu", dtype="bf16", attn="eager", threads=2
    )

    victorctl(*"demo --out d --steps 9 --device cpu --dtype bf16 --attn eager --threads 2".split())
    run = Run(out=Path("d"), device="cpu", dtype="bf16", attn="eager", threads=2)
    assert stages["demo"][1] == {"run": run, "steps": 9}


def test_a_flag_beats_set_and_set_beats_the_recipe(victorctl, stages, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("seed: 1\nconvert: {link: true}\nvictor: {registers: 2, drop_layer: 2}\n")

    victorctl(
        *f"convert m --out o --recipe {file} --set victor.registers=3 --set seed=3".split(),
        *"--seed 0 --no-link".split(),
    )
    recipe = stages["convert"][1]["recipe"]

    assert (recipe.seed, recipe.convert.link) == (0, False)
    assert (recipe.victor.registers, recipe.victor.drop_layer) == (3, 2)


@pytest.mark.parametrize("command", ["convert {} --out o", "inspect {}", "eval m --base {}"])
def test_demo_is_the_model_that_comes_along_also_beside_a_folder_of_that_name(
    victorctl, stages, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)

    def given(word):
        _, _, err = victorctl(*command.format(word).split())
        places, named = stages["evaluate" if command.startswith("eval") else command.split()[0]]
        return (named["run"].base if command.startswith("eval") else places[0]), "note: " in err

    assert given("demo") == ("demo", False)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    assert given("demo") == (str(DEMO), True)
    assert given("./demo") == ("./demo", False)


def test_a_recipe_of_ours_is_found_by_name(victorctl, stages):
    assert victorctl("eval", "m", "--recipe", "demo/victor")[0] == 0
    assert stages["evaluate"][1]["recipe"].eval.data == "demo:test"

    code, _, err = victorctl("eval", "m", "--recipe", "none.yaml")
    assert code == 1
    assert err.startswith("error: none.yaml: neither a file nor one of our recipes\n  fix: use")


def test_what_may_not_be_read_is_named(victorctl, monkeypatch):
    failing(monkeypatch, PermissionError(13, "Permission denied", "/m/config.json"))
    assert victorctl("inspect", "m") == (
        *(1, "", "error: /m/config.json: you may not read or write it\n"
        "  fix: ls -ld /m/config.json, and change its permissions\n"),
    )  # fmt: skip


@pytest.mark.parametrize("size", ["0x5", "x", "640", "99999999999999999999x3", "-3x4"])
def test_a_size_that_no_picture_has_is_refused(victorctl, stages, size):
    code, _, err = victorctl("inspect", "m", "--picture", size)
    assert (code, f"--picture {size}: not a width and a height" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "following"),
    [
        ("convert m --out o", "victorctl finetune o --data DATA --out o-trained"),
        ("convert m --out o --set data.train=demo", "victorctl finetune o --data demo --out o-tr"),
        ("convert m --out o --dry-run", "the same without --dry-run"),
        ("finetune m --out o --data a.json", "victorctl eval o --data DATA"),
        ("finetune m --out o --data demo", "victorctl eval o --data demo:test"),
        ("finetune m --out o --set eval.data=b.json", "victorctl eval o --data b.json"),
        ("eval m", "python -m webbrowser o/eval/report.html"),
        ("show m cat.jpg -q what", "python -m webbrowser cat-victor.png"),
        ("push m ada/victor", "victorctl pull ada/victor --out FOLDER"),
        ("push m ada/victor --dry-run", "the same without --dry-run"),
        ("pull ada/victor --out o", "victorctl inspect o"),
        ("demo", "victorctl convert llava-hf/llava-1.5-7b-hf --out victor-7b"),
    ],
)
def test_a_stage_ends_with_the_next_command_on_stderr(victorctl, stages, arguments, following):
    code, _, err = victorctl(*arguments.split())
    assert (code, err.startswith(f"next: {following}")) == (0, True), err


@pytest.mark.parametrize(
    ("arguments", "schema", "key"),
    [
        ("convert m --out o", "convert", "family"),
        ("finetune m --out o", "finetune", "steps"),
        ("eval m", "eval", "report"),
        ("compare m --data demo:test", "compare", "plot"),
        ("push m ada/victor", "push", "files"),
        ("pull ada/victor --out o", "pull", "out"),
        ("demo", "demo", "folder"),
        ("inspect m", "inspect", "family"),
        ("show m cat.jpg -q what", "show", "answers"),
        ("diff a b", "diff", "notes"),
        ("methods", "methods", "methods"),
        ("families", "families", "families"),
        ("data show demo", "data-show", "rows"),
        ("data check demo", "data-check", "bad"),
        ("recipes", "recipes", "recipes"),
        ("recipes list", "recipes", "recipes"),
        ("recipes keys", "recipes-keys", "keys"),
        ("bench m", "bench", "seconds"),
        ("bench train", "bench-train", "seconds"),
    ],
)
def test_json_is_one_object_with_schema_and_result(victorctl, stages, arguments, schema, key):
    code, out, _ = victorctl(*arguments.split(), "--json")
    found = json.loads(out)
    assert (code, next(iter(found.items()))) == (0, ("schema", f"victorctl/{schema}/1"))
    assert key in found


def test_people_get_tables(victorctl, stages):
    assert "the table" in victorctl("eval", "m")[1]
    assert "the table" in victorctl("demo")[1]
    assert "llava" in victorctl("families")[1]
    assert "demo/victor" in victorctl("recipes")[1]
    assert "train.rank" in victorctl("recipes", "keys")[1]


def test_every_option_of_data_arrives_and_bad_rows_are_refused_at_the_end(victorctl, stages):
    victorctl(*"data show a.json -n 5 --model m".split())
    assert stages["show"] == (("a.json", 5), {"model": "m"})
    code, out, _ = victorctl(*"data check a.json --rows 9 --model m".split())
    assert (code, out.strip(), stages["demanded"]) == (0, "the table", {"bad": 2})
    assert stages["check"] == (("a.json",), {"rows": 9, "model": "m"})


ALL = [info for app in (cli.app, *groups.GROUPS.values()) for info in app.registered_commands]
EXAMPLES = [re.search(r"Example: victorctl (.*)", info.callback.__doc__)[1] for info in ALL]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_of_every_command_runs(victorctl, stages, example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("seed: 1\n")
    code, _, err = victorctl(*shlex.split(example))
    assert code == 0, err


def test_every_command_says_in_one_line_what_it_does(victorctl):
    assert len(EXAMPLES) == 20
    for info in ALL:
        about, empty, example = info.callback.__doc__.strip().splitlines()
        assert (about[-1], empty, example.split()[0]) == (".", "", "Example:")
    assert "Example: victorctl eval victor-7b-trained" in " ".join(
        victorctl("eval", "--help")[1].split()
    )


SLOW = [pytest.param(words, marks=pytest.mark.slow) for words in ("inspect demo", "doctor")]


@pytest.mark.parametrize("words", ["--help", *SLOW])
def test_a_terminal_that_knows_ascii_only_is_no_reason_to_fail(words):
    done = subprocess.run(
        [sys.executable, "-m", "victorctl", *words.split()],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_a_redirect_is_said():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "victorctl", "families"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1, "error: no space left for what is printed\n  fix: free some space\n",
    )  # fmt: skip


def test_the_version_is_printed(victorctl):
    assert victorctl("--version") == (0, f"victorctl {__version__}\n", "")


def test_help_lists_the_commands_and_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from victorctl.__main__ import main; sys.argv = ['victorctl', '--help']\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = shown.stdout.splitlines()
    listed = [line.split()[1] for line in lines if line[:1] == "│" and "--" not in line]
    assert (listed, lines[-1]) == ([*COMMANDS], "[]")


def test_command_bodies_are_straight_lines():
    branches = (
        ast.If, ast.IfExp, ast.BoolOp, ast.For, ast.While, ast.Try, ast.With, ast.Match,
        ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    )  # fmt: skip
    commands = [
        node
        for module in (cli, looks, groups)
        for node in ast.parse(Path(module.__file__).read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any("command" in ast.dump(d) for d in node.decorator_list)
    ]

    assert len(commands) == 20
    for command in commands:
        found = [type(node).__name__ for node in ast.walk(command) if isinstance(node, branches)]
        assert not found, f"{command.name} has {found}"
