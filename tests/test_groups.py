"""Commands that stand in groups; what all commands share is tested in `tests.test_cli`."""

import json
import sys
from types import ModuleType

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


def test_every_option_of_bench_train_arrives(victorctl, monkeypatch):
    calls, fake = [], ModuleType("victorctl.bench")
    fake.train = lambda *given, **named: calls.append((given, named)) or {"seconds": {}}
    monkeypatch.setitem(sys.modules, fake.__name__, fake)

    victorctl(
        *"bench train --layers 8 --width 256 --registers 4 --batch-size 2 --questions 3".split(),
        *"--text-before 5 --repeats 1 --seed 2 --device cpu --dtype bf16 --threads 2".split(),
    )

    bench = {"layers": 8, "width": 256, "batch_size": 2, "questions": 3, "text_before": 5}
    bench["repeats"] = 1
    recipe = Recipe.model_validate({"seed": 2, "victor": {"registers": 4}, "bench": bench})
    run = Run(device="cpu", dtype="bf16", threads=2)
    assert calls == [((), {"recipe": recipe, "run": run})]


def test_a_width_that_heads_cannot_share_is_refused(victorctl):
    assert victorctl("bench", "train", "--width", "100") == (
        *(1, "", "error: --width 100: expected a multiple of 32\n"
        "  fix: choose a multiple of 32\n"),
    )  # fmt: skip
