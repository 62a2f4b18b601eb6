"""Commands that stand in groups; what all commands share is tested in `tests.test_cli`."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from victorctl.recipe import Recipe, Run


def test_keys_are_explained_for_a_file_or_a_recipe_of_ours(victorctl, tmp_path):
    (tmp_path / "r.yaml").write_text("train: {steps: 7}\n")
    for name, steps in ((str(tmp_path / "r.yaml"), "7"), ("demo/quick", "500")):
        rows = json.loads(victorctl("recipes", "keys", name, "--json")[1])["keys"]
        assert {row["key"]: row["here"] for row in rows}["train.steps"] == steps


def test_recipes_are_copied(victorctl, tmp_path):
    target = tmp_path / "mine.yaml"
    code, out, err = victorctl("recipes", "copy", "demo/lora", "--out", str(target), "--json")

    assert (code, json.loads(out)["file"]) == (0, str(target))
    assert err == f"next: victorctl recipes keys {target}\n"
    assert victorctl("recipes", "copy", "demo/lora", "--out", str(target))[0] == 1


@pytest.fixture
def bench(victorctl, monkeypatch):
    """Run `bench` in words, with stand-ins for its stages, and tell which was called with what."""
    calls = []
    for module, name in (("bench", "bench"), ("bench_train", "train"), ("speeds", "table")):
        fake = ModuleType(f"victorctl.{module}")
        setattr(fake, name, lambda *given, **named: calls.append((given, named)) or {})
        monkeypatch.setitem(sys.modules, fake.__name__, fake)

    def run(words):
        calls.clear()
        victorctl("bench", *words.split())
        return calls[0]

    return run


def test_every_option_of_bench_train_arrives(bench):
    found = bench(
        "train --layers 8 --width 256 --registers 4 --batch-size 2 --questions 3 "
        "--text-before 5 --repeats 1 --seed 2 --device cpu --dtype bf16 --threads 2"
    )

    given = {"layers": 8, "width": 256, "batch_size": 2, "questions": 3, "text_before": 5}
    given["repeats"] = 1
    recipe = Recipe.model_validate({"seed": 2, "victor": {"registers": 4}, "bench": given})
    run = Run(device="cpu", dtype="bf16", threads=2)
    assert found == ((), {"recipe": recipe, "run": run})


def test_every_option_of_bench_arrives(bench):
    found = bench(
        "--shape llava-1.5-13b --layers 8 --width-scale 0.5 --registers 4 --drop-layer 3 "
        "--also 16@3 --also random --text 32 --batch-size 2 --repeats 1 --seed 2 "
        "--picture 320x240 --device cpu --dtype bf16 --attn eager --threads 2 "
        "--set bench.speeds=[prefill]"
    )

    given = {"shape": "llava-1.5-13b", "layers": 8, "width_scale": 0.5, "registers": 4}
    given |= {"drop_layer": 3, "also": ["16@3", "random"], "text": 32, "batch_size": 2}
    given |= {"repeats": 1, "speeds": ["prefill"]}
    recipe = Recipe.model_validate({"seed": 2, "bench": given})
    run = Run(device="cpu", dtype="bf16", attn="eager", threads=2)
    assert found == ((None,), {"recipe": recipe, "run": run, "picture": (240, 320)})


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("model", (Path("model"),)),
        ("./train", (Path("train"),)),  # a folder of that name
        ("bench", (Path("bench"),)),
        ("--shape llava-1.5-7b", (None,)),
        ("train", ()),
    ],
)
def test_bench_takes_a_folder_unless_a_subcommand_is_named(bench, words, given):
    assert bench(words)[0] == given


def test_the_help_of_bench_is_that_of_the_command(victorctl):
    code, out, _ = victorctl("bench", "--help")
    assert code == 0
    assert "Usage: victorctl bench [OPTIONS]" in out
    assert "--width-scale" in out
    assert "Usage: victorctl bench train [OPTIONS]" in victorctl("bench", "train", "--help")[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--shape llava-2", "llava-1.5-7b, llava-1.5-13b, llava-v1.6-mistral-7b or llava-onev"),
        ("--set bench.also=random", "a list, as in [a, b]"),
        ("--set bench.speeds=[decode]", "time_to_first_token, prefill, generate_2 or gener"),
        ("--width-scale 2.5", "1 or less"),
        ("--layers 2", "3 or more"),
    ],
)
def test_a_setting_of_bench_that_does_not_fit_is_refused(victorctl, words, expected):
    code, _, err = victorctl("bench", *words.split())
    assert (code, err.startswith(f"error: {words}: expected {expected}")) == (1, True), err


def test_a_width_that_heads_cannot_share_is_refused(victorctl):
    assert victorctl("bench", "train", "--width", "100") == (
        *(1, "", "error: --width 100: expected a multiple of 32\n"
        "  fix: choose a multiple of 32\n"),
    )  # fmt: skip
