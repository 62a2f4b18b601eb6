"""Measure the demo's recipes as a user would, and keep what the commands print for docs/results.md.

    python scripts/demo/measure.py victor lora registers --out measured

runs convert, finetune and eval for each recipe, and writes docs/results/demo-NAME.json.
"""

import argparse
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LOCAL = ("out", "report", "folder")  # paths on this machine, of no use to a reader


def run(words: list[str]) -> dict[str, Any]:
    """Run a command and read the JSON object that it prints."""
    print(shlex.join(words), flush=True)
    done = subprocess.run([*words, "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    return {key: value for key, value in result.items() if key not in LOCAL}


def measure(name: str, out: Path) -> None:
    """Run the three stages of one recipe, and keep the numbers and the commands."""
    recipe = ["--recipe", f"demo/{name}"]
    converted, trained = str(out / f"{name}-converted"), str(out / name)
    commands = {
        "convert": ["victorctl", "convert", "demo", "--out", converted, *recipe],
        "finetune": ["victorctl", "finetune", converted, "--out", trained, *recipe],
        "eval": ["victorctl", "eval", trained, *recipe],
    }
    results = {stage: run(words) for stage, words in commands.items()}
    typed = [shlex.join(words).replace(f"{out}/", "") for words in commands.values()]
    written = ROOT / "docs" / "results" / f"demo-{name}.json"
    written.write_text(json.dumps({"commands": typed, **results}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    for each in chosen.names:
        measure(each, chosen.out)
