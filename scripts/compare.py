"""Train a model that serves any number of registers, and measure every method beside it.

    python scripts/compare.py demo smol --out measured

writes docs/results/MODEL-compare.json and docs/images/MODEL-pareto.png, for docs/results.md.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from scripts.measure import PLOT, SOURCES, again, changes, keep, run, typed
from victorctl import plots
from victorctl.files import write_whole


class Compared(NamedTuple):
    """What is trained and compared.

    Args:
        recipe: One that comes along.
        settings: What is changed of it.
        budgets: Mean visual tokens entering a layer, smallest first.
        limit: Questions.
    """

    recipe: str
    settings: dict[str, Any]
    budgets: tuple[float, ...]
    limit: int


COMPARED = {
    "demo": Compared(
        "demo/quick",
        {"victor.registers": 16, "train.elastic": True, "train.steps": 1000},
        (26, 27, 29, 33, 41),  # of 1, 2, 4, 8 and 16 registers
        1000,
    ),
    "smol": Compared(
        "smol/victor",
        {"train.elastic": True, "train.steps": 200},
        (4.6, 5.6, 7.6, 11.6),  # of 1, 2, 4 and 8 registers
        200,
    ),
}


def compare(model: str, out: Path) -> None:
    """Convert, train and compare, and keep numbers, commands and the plot."""
    chosen = COMPARED[model]
    converted, trained = str(out / f"{model}-converted"), str(out / f"{model}-elastic")
    budgets = ",".join(f"{budget:g}" for budget in chosen.budgets)
    words = {
        "convert": ["convert", SOURCES[model], "--out", converted],
        "finetune": ["finetune", converted, "--out", trained],
        "compare": ["compare", trained, "--methods", "all", "--budgets", budgets],
    }
    commands = {
        stage: ["victorctl", *each, "--recipe", chosen.recipe, *changes(stage, chosen.settings)]
        for stage, each in words.items()
    }
    repeats = "eval.repeats=1" if model == "demo" else "eval.repeats=0"  # it would take an hour
    commands["compare"] += ["--limit", str(chosen.limit), "--set", repeats]
    found = {
        stage: run(each if stage == "compare" else again(stage, each))
        for stage, each in commands.items()
    }
    keep(f"{model}/compare", {"commands": typed(commands, out), **found})
    figure = plots.pareto(found["compare"], plots.Palette())
    write_whole(PLOT.with_name(f"{model}-pareto.png"), plots.png(figure))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=COMPARED)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for each in given.models:
        compare(each, given.out)
