"""Cut a model of 16 registers to its last ones, as the paper also tries, and measure it.

    victorctl convert demo --out converted --recipe demo/quick --registers 16
    victorctl finetune converted --out sixteen --recipe demo/quick --steps 500
    python scripts/demo/tail.py sixteen --out cut

Writes docs/results/demo-tail.json. Cutting to the first ones is `victorctl eval --registers`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from victorctl.files import write_whole
from victorctl.modeling_victor import WEIGHTS

RESULT = Path(__file__).parents[2] / "docs" / "results" / "demo-tail.json"
COUNTS = (1, 2, 4, 8)
KEPT = ("questions", "accuracy", "kept", "interval")


def cut(model: Path, out: Path, count: int) -> None:
    """Write a model that has the last registers alone, at the positions where they were."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("eval", "victor.json"))
    tensors = load_file(out / WEIGHTS)
    registers = tensors["victor.registers.weight"]
    tensors["victor.registers.weight"] = registers[len(registers) - count :].contiguous()
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["victor"]["registers"] = count
    (out / "config.json").write_text(json.dumps(config))


def measure(model: Path) -> dict[str, object]:
    """Ask what the elastic study asks, beside the demo's base."""
    words = ["victorctl", "eval", str(model), "--base", "demo", "--recipe", "demo/quick"]
    words += ["--limit", "1000", "--no-baselines", "--set", "eval.repeats=0", "--json"]
    done = subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    return {key: found[key] for key in KEPT}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = {}
    for number in COUNTS:
        cut(given.model, given.out / str(number), number)
        runs[str(number)] = measure(given.out / str(number))
    write_whole(RESULT, (json.dumps({"runs": runs}, indent=1) + "\n").encode())
