"""Measure the demo's recipes as a user would, and keep what the commands print for docs/results.md.

    python scripts/demo/measure.py victor lora registers init --out measured

runs convert, finetune and eval for each recipe, and writes docs/results/demo-NAME.json; `init`
compares the ways to initialise registers, in shorter trainings of two recipes.
"""

import argparse
import itertools
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LOCAL = ("out", "report", "folder")  # paths on this machine, of no use to a reader
INITS = ("visual", "embeddings")
SHORT = ("registers", "quick")  # recipes that `init` trains
STEPS, PICTURES, QUESTIONS, SEEDS = 400, 12, 1000, (0, 1)


def run(words: list[str]) -> dict[str, Any]:
    """Run a command and read the JSON object that it prints."""
    print(shlex.join(words), flush=True)
    done = subprocess.run([*words, "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    return {key: value for key, value in result.items() if key not in LOCAL}


def stages(name: str, recipe: str, out: Path, more: dict[str, list[str]]) -> dict[str, list[str]]:
    """Write the three commands of a recipe of the demo, with more words for each stage."""
    converted, trained = str(out / f"{name}-converted"), str(out / name)
    words = {
        "convert": ["convert", "demo", "--out", converted],
        "finetune": ["finetune", converted, "--out", trained],
        "eval": ["eval", trained],
    }
    return {
        stage: ["victorctl", *each, "--recipe", f"demo/{recipe}", *more.get(stage, [])]
        for stage, each in words.items()
    }


def typed(commands: dict[str, list[str]], out: Path) -> list[str]:
    """Show commands as they are typed, without the folder that they ran in."""
    return [shlex.join(words).replace(f"{out}/", "") for words in commands.values()]


def keep(name: str, content: dict[str, Any]) -> None:
    """Write what was measured to the project's results."""
    file = ROOT / "docs" / "results" / f"demo-{name}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")


def measure(name: str, out: Path) -> None:
    """Run the three stages of one recipe, and keep the numbers and the commands."""
    commands = stages(name, name, out, {})
    results = {stage: run(words) for stage, words in commands.items()}
    keep(name, {"commands": typed(commands, out), **results})


def measure_inits(out: Path) -> None:
    """Train short with every initialisation, and keep what became of each."""
    runs = []
    for recipe, seed, init in itertools.product(SHORT, SEEDS, INITS):
        more = {
            "convert": ["--init", init, "--seed", str(seed)],
            "finetune": [
                *("--steps", str(STEPS), "--batch-size", str(PICTURES), "--seed", str(seed)),
            ],
            "eval": ["--limit", str(QUESTIONS), "--set", "eval.baselines=false"],
        }
        commands = stages(f"{recipe}-{init}-{seed}", recipe, out, more)
        results = {stage: run(words) for stage, words in commands.items()}
        runs.append(
            {
                "rung": results["finetune"]["train"],
                "init": init,
                "seed": seed,
                "steps": results["finetune"]["steps"],
                "loss": results["finetune"]["loss"],
                "accuracy": results["eval"]["accuracy"],
                "kept": results["eval"]["kept"],
                "commands": typed(commands, out),
            }
        )
    keep("init", {"runs": runs})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help="recipes of the demo, or init")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    for each in chosen.names:
        measure_inits(chosen.out) if each == "init" else measure(each, chosen.out)
