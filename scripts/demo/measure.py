"""Measure the demo as a user would, and keep what the commands print for docs/results.md.

    python scripts/demo/measure.py victor lora registers positions registers-study --out measured

A recipe of the demo is converted, trained and evaluated once, for docs/results/demo-NAME.json. A
study does so for every variant of a recipe that `STUDIES` lists. Its file grows by one run at a
time, and what it holds already is not run again, so that a study can be stopped and started. When
all runs of `registers-study` are there, they are drawn: docs/images/registers.png.
"""

import argparse
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from victorctl import plots
from victorctl.files import write_whole

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results"
PLOT = ROOT / "docs" / "images" / "registers.png"
LOCAL = ("out", "report", "folder")  # paths on this machine, of no use to a reader

Settings = Mapping[str, Any]
"""Keys of the recipe and their values."""

READ_BY = {  # sections of the recipe, and the stages whose results they change
    "seed": ("convert", "finetune"),
    "victor": ("convert",),
    "train": ("finetune",),
    "eval": ("eval",),
}
KEPT = {  # what a study keeps of each run
    "convert": ("registers", "drop_layer", "positions", "init"),
    "finetune": ("train", "steps", "trainable_parameters", "base_intact", "loss", "seconds"),
    "eval": ("questions", "accuracy", "kept", "interval", "by_type", "mean_visual_tokens"),
}


@dataclass(frozen=True)
class Study:
    """One recipe trained in several variants.

    Args:
        recipe: A recipe of the demo.
        shared: What every run sets.
        variants: What each run sets beside that.
    """

    recipe: str
    shared: Settings
    variants: tuple[Settings, ...]


QUESTIONS = {"eval.limit": 1000, "eval.baselines": False}
STUDIES = {
    "positions": Study(
        recipe="quick",
        shared={"train.steps": 400, "train.batch_size": 12, **QUESTIONS},
        variants=tuple(
            {"seed": seed, "victor.positions": positions, "victor.init": init}
            for seed, positions, init in itertools.product(
                (0, 1, 2), ("overlay", "append"), ("visual", "embeddings")
            )
        ),
    ),
    "registers-study": Study(
        recipe="registers",
        shared=QUESTIONS,
        variants=(
            {},
            {"train.steps": 2400},
            {"train.rung": "deep"},
            {"train.hidden": 1.0},
            {"victor.drop_layer": 3},
            {"victor.drop_layer": 4},
            {"victor.registers": 16},
            {"victor.registers": 32},
            {
                "train.rung": "deep",
                "victor.drop_layer": 4,
                "victor.registers": 16,
                "train.steps": 2400,
            },
        ),
    ),
}
NAMES = {  # of a setting, where variants are told apart
    "train.steps": "{:,} steps",
    "train.rung": "{}",
    "train.hidden": "hidden states",
    "victor.drop_layer": "k={}",
    "victor.registers": "M={}",
}


def run(words: list[str]) -> dict[str, Any]:
    """Run a command of the package that lies here, and read the JSON object that it prints."""
    print(shlex.join(words), flush=True)
    command = [sys.executable, "-m", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    return {key: value for key, value in result.items() if key not in LOCAL}


def stages(name: str, recipe: str, out: Path, settings: Settings) -> dict[str, list[str]]:
    """Write the three commands of a recipe of the demo, each with the settings that it reads."""
    converted, trained = str(out / f"{name}-converted"), str(out / name)
    words = {
        "convert": ["convert", "demo", "--out", converted],
        "finetune": ["finetune", converted, "--out", trained],
        "eval": ["eval", trained],
    }
    return {
        stage: ["victorctl", *each, "--recipe", f"demo/{recipe}", *changes(stage, settings)]
        for stage, each in words.items()
    }


def changes(stage: str, settings: Settings) -> list[str]:
    """Spell the settings that a stage reads."""
    return [
        word
        for key, value in settings.items()
        if stage in READ_BY[key.partition(".")[0]]
        for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    ]


def typed(commands: dict[str, list[str]], out: Path) -> list[str]:
    """Show commands as they are typed, without the folder that they ran in."""
    return [shlex.join(words).replace(f"{out}/", "") for words in commands.values()]


def keep(name: str, content: dict[str, Any]) -> None:
    """Write what was measured to the project's results."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(RESULTS / f"demo-{name}.json", text.encode())


def measure(name: str, out: Path) -> None:
    """Run the three stages of one recipe, and keep the numbers and the commands."""
    commands = stages(name, name, out, {})
    results = {stage: run(words) for stage, words in commands.items()}
    keep(name, {"commands": typed(commands, out), **results})


def study(name: str, out: Path) -> None:
    """Run every variant of a study that was not run yet, and keep each as soon as it is done."""
    file, chosen = RESULTS / f"demo-{name}.json", STUDIES[name]
    stored = json.loads(file.read_text())["runs"] if file.exists() else []
    known = {tuple(each["commands"]): each for each in stored}
    wanted = [stages_of(chosen, variant, out) for variant in chosen.variants]
    runs = [known.get(tuple(typed(commands, out))) for commands in wanted]
    for place, commands in enumerate(wanted):
        if runs[place] is None:
            found = {stage: run(again(stage, words)) for stage, words in commands.items()}
            told = {stage: {key: found[stage][key] for key in KEPT[stage]} for stage in KEPT}
            runs[place] = {"changed": chosen.variants[place], "commands": typed(commands, out)}
            runs[place] |= told
            keep(name, {"recipe": chosen.recipe, "runs": [each for each in runs if each]})


def stages_of(chosen: Study, variant: Settings, out: Path) -> dict[str, list[str]]:
    """Write the three commands of a variant, in folders that say what is special about it."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in variant.items()]
    name = "-".join([chosen.recipe, *(parts or ["unchanged"])])
    return stages(name, chosen.recipe, out, {**chosen.shared, **variant})


def again(stage: str, words: list[str]) -> list[str]:
    """Let a command replace what a run that was stopped has left."""
    return words if stage == "eval" else [*words, "--overwrite"]


def name_of(variant: Settings) -> str:
    """Say what a variant of registers alone changes."""
    return ", ".join(NAMES[key].format(value) for key, value in variant.items()) or "demo/registers"


def points(runs: Sequence[dict[str, Any]], victor: dict[str, Any]) -> list[plots.Point]:
    """Place registers alone beside register-LoRA and pooled tokens, as demo/victor has them."""
    there = {point.name: point for point in plots.points_of(victor["eval"], "register-lora")}
    other = replace(there["register-lora"], kind="other", interval=None)
    alone = [
        plots.Point(
            name_of(run["changed"]),
            run["eval"]["mean_visual_tokens"]["model"],
            run["eval"]["kept"],
            kind="model",
        )
        for run in runs
    ]
    return [there["base"], other, there["pool"], *alone]


def draw() -> None:
    """Draw the study of registers alone, as far as it has come."""
    runs, victor = (
        json.loads((RESULTS / f"demo-{name}.json").read_text())
        for name in ("registers-study", "victor")
    )
    figure = plots.tradeoff(points(runs["runs"], victor), plots.Palette())
    write_whole(PLOT, plots.png(figure))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help=f"recipes of the demo, or {', '.join(STUDIES)}")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for each in given.names:
        study(each, given.out) if each in STUDIES else measure(each, given.out)
        if each == "registers-study":
            draw()
