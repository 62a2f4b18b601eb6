"""Measure recipes as a user would, and keep what the commands print for docs/results.md.

    python scripts/measure.py demo/victor demo/lora demo/registers smol/victor --out measured
    python scripts/measure.py demo/positions demo/registers-study smol/positions --out measured

A recipe is converted, trained and evaluated once, for docs/results/MODEL-NAME.json. A study does so
for every variant of a recipe that `STUDIES` lists. Its file grows by one run at a time, and what it
holds already is not run again, so that a study can be stopped and started. When all runs of
`demo/registers-study` or of a ladder are there, they are drawn, to docs/images.

smol is the model that `scripts/smol/build.py` writes. How well it foretells a page of English is
measured too, before and after.
"""

import argparse
import hashlib
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from victorctl import plots
from victorctl.checkpoint import hash_base
from victorctl.files import write_whole
from victorctl.lineage import hash_of
from victorctl.sources import open_source

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PLOT = ROOT / "docs" / "images" / "registers.png"
SMOL = Path.home() / ".cache" / "victorctl" / "smol" / "smol-84"  # from scripts/smol/build.py
SOURCES = {"demo": "demo", "smol": str(SMOL)}
LOCAL = ("out", "report", "folder")  # paths on this machine, of no use to a reader

Settings = Mapping[str, Any]
"""Keys of the recipe and their values."""

READ_BY = {  # sections of the recipe, and the stages whose results they change
    "seed": ("convert", "finetune"),
    "victor": ("convert",),
    "convert": ("convert",),
    "train": ("finetune",),
    "eval": ("eval",),
    "compare": ("compare",),
}
KEPT = {  # what a study keeps of each run
    "convert": ("registers", "drop_layer", "positions", "init"),
    "finetune": (
        "train",
        "steps",
        "trainable_parameters",
        "base_intact",
        "loss",
        "seconds",
        "peak_memory_bytes",
    ),
    "eval": ("questions", "accuracy", "kept", "interval", "by_type", "mean_visual_tokens"),
}


@dataclass(frozen=True)
class Study:
    """One recipe trained in several variants.

    Args:
        recipe: One that comes along.
        shared: What every run sets.
        variants: What each run sets beside that.
    """

    recipe: str
    shared: Settings
    variants: tuple[Settings, ...]


QUESTIONS = {"eval.limit": 1000, "eval.baselines": False}
UNPROVED = {"convert.verify": "none", "eval.repeats": 0}  # proved and timed once, with the recipe
STARTS = tuple(
    {"seed": seed, "victor.positions": positions, "victor.init": init}
    for seed, positions, init in itertools.product(
        (0, 1, 2), ("overlay", "append"), ("visual", "embeddings")
    )
)
STUDIES = {
    "demo/positions": Study(
        recipe="demo/quick",
        shared={"train.steps": 400, "train.batch_size": 12, **QUESTIONS},
        variants=STARTS,
    ),
    "smol/positions": Study(
        recipe="smol/victor",
        shared={
            "train.steps": 30,
            "train.batch_size": 4,
            "train.distill": 0,
            **QUESTIONS,
            **UNPROVED,
            "eval.limit": 200,
        },
        variants=STARTS,
    ),
    "demo/registers-study": Study(
        recipe="demo/registers",
        shared=QUESTIONS,
        variants=(
            {},
            {"train.steps": 1600},
            {"train.rung": "deep"},
            {"train.hidden": 1.0},
            {"victor.drop_layer": 4},
            {"victor.registers": 16},
        ),
    ),
}
COUNTS = (1, 2, 4, 8, 16)  # of registers
STUDIES["demo/elastic"] = Study(
    recipe="demo/quick",
    shared={**QUESTIONS, **UNPROVED},
    variants=(
        *(
            {
                "victor.registers": 16,
                "train.elastic": True,
                "train.steps": 1000,
                "eval.registers": m,
            }
            for m in COUNTS
        ),
        *(
            {"victor.registers": 16, "train.steps": 500, "eval.registers": count}
            for count in COUNTS
        ),
        *({"victor.registers": count, "train.steps": 500} for count in COUNTS[:-1]),
    ),
)
LADDER = tuple(
    {"train.rung": f"{rung}{more}"}
    for rung in ("registers", "deep", "register-lora", "lora-early", "lora", "full")
    for more in ("", "+projector")
)
STUDIES["demo/ladder"] = Study(
    recipe="demo/quick",
    shared={"train.distill": 1.0, "train.base_learning_rate": 1e-3, **QUESTIONS, **UNPROVED},
    variants=(
        *LADDER,
        {"train.rung": "register-lora", "train.layers": "early"},
        {"train.rung": "lora", "train.rslora": True},
    ),
)
STUDIES["smol/ladder"] = Study(
    recipe="smol/victor",
    shared={
        "train.steps": 30,
        "train.batch_size": 4,
        "train.base_learning_rate": 1e-4,
        **QUESTIONS,
        **UNPROVED,
        "eval.limit": 200,
    },
    variants=LADDER,
)
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
    """Write the three commands of a recipe, each with the settings that it reads."""
    converted, trained = str(out / f"{name}-converted"), str(out / name)
    words = {
        "convert": ["convert", SOURCES[model_of(recipe)], "--out", converted],
        "finetune": ["finetune", converted, "--out", trained],
        "eval": ["eval", trained],
    }
    return {
        stage: ["victorctl", *each, "--recipe", recipe, *changes(stage, settings)]
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


def model_of(recipe: str) -> str:
    """Name the model that a recipe or a study is about."""
    return recipe.partition("/")[0]


def typed(commands: dict[str, list[str]], out: Path) -> list[str]:
    """Show commands as they are typed, without the folders that they ran in."""
    lines = (shlex.join(words) for words in commands.values())
    return [line.replace(f"{out}/", "").replace(f"{SMOL.parent}/", "") for line in lines]


def keep(name: str, content: dict[str, Any]) -> None:
    """Write what was measured to the project's results."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(file_of(name), text.encode())


def file_of(name: str) -> Path:
    """Where the results of a recipe or a study lie."""
    return RESULTS / f"{name.replace('/', '-')}.json"


def measure(name: str, out: Path) -> None:
    """Run the three stages of one recipe, and keep the numbers and the commands."""
    commands = stages(short(name), name, out, {})
    results = {stage: run(words) for stage, words in commands.items()}
    if model_of(name) == "smol":
        results["perplexity"] = run(["scripts.smol.perplexity", str(out / short(name))])
    keep(name, {"commands": typed(commands, out), **results})


def short(name: str) -> str:
    """Name a recipe without its model."""
    return name.partition("/")[2]


def study(name: str, out: Path) -> None:
    """Run every variant of a study that was not run yet, and keep each as soon as it is done."""
    file, chosen = file_of(name), STUDIES[name]
    content = {"recipe": chosen.recipe, "made_of": made_of(chosen.recipe), "runs": []}
    stored = json.loads(file.read_text()) if file.exists() else content
    if stored["made_of"] != content["made_of"]:
        sys.exit(f"{file}: runs of another recipe or model\n  fix: remove it")
    known = {tuple(each["commands"]): each for each in stored["runs"]}
    wanted = [stages_of(chosen, variant, out) for variant in chosen.variants]
    runs = [known.get(tuple(typed(commands, out))) for commands in wanted]
    done: dict[tuple[str, ...], dict[str, Any]] = {}  # variants may share a model
    for place, commands in enumerate(wanted):
        if runs[place] is None:
            for stage, words in commands.items():
                if tuple(words) not in done:
                    done[tuple(words)] = run(again(stage, words))
            found = {stage: done[tuple(words)] for stage, words in commands.items()}
            told = {stage: {key: found[stage][key] for key in KEPT[stage]} for stage in KEPT}
            runs[place] = {"changed": chosen.variants[place], "commands": typed(commands, out)}
            runs[place] |= told
            keep(name, {**content, "runs": [each for each in runs if each]})


def made_of(recipe: str) -> dict[str, str]:
    """Hash what every run of a study depends on beside its own settings."""
    file = ROOT / "recipes" / f"{recipe}.yaml"
    folder = open_source(SOURCES[model_of(recipe)]).folder
    return {
        "recipe_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "source_sha256": hash_of(hash_base(folder)),
    }


def stages_of(chosen: Study, variant: Settings, out: Path) -> dict[str, list[str]]:
    """Write the three commands of a variant, in folders that say what is special about it."""
    made = {key: value for key, value in variant.items() if not key.startswith("eval.")}
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in made.items()]
    name = "-".join([short(chosen.recipe), *(parts or ["unchanged"])])
    return stages(name, chosen.recipe, out, {**chosen.shared, **variant})


def again(stage: str, words: list[str]) -> list[str]:
    """Let a command replace what a run that was stopped has left."""
    return words if stage == "eval" else [*words, "--overwrite"]


def name_of(variant: Settings) -> str:
    """Say what a variant of registers alone changes."""
    return ", ".join(NAMES[key].format(value) for key, value in variant.items()) or "demo/registers"


def points(runs: Sequence[dict[str, Any]], victor: dict[str, Any]) -> list[plots.Point]:
    """Place registers alone beside register-LoRA and pooled tokens, as demo/victor has them.

    Runs with as many tokens are one point, at the mean of what they keep.
    """
    there = {point.name: point for point in plots.points_of(victor["eval"], "register-lora")}
    other = replace(there["register-lora"], kind="other", interval=None)
    groups: dict[float, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["eval"]["mean_visual_tokens"]["model"], []).append(run)
    alone = [
        plots.Point(
            name_of(group[0]["changed"]) if len(group) == 1 else f"{len(group)} ways",
            tokens,
            fmean(run["eval"]["kept"] for run in group),
            kind="model",
        )
        for tokens, group in groups.items()
    ]
    return [there["base"], other, there["pool"], *alone]


def draw() -> None:
    """Draw the study of registers alone, as far as it has come."""
    runs, victor = (
        json.loads(file_of(name).read_text()) for name in ("demo/registers-study", "demo/victor")
    )
    figure = plots.tradeoff(points(runs["runs"], victor), plots.Palette())
    write_whole(PLOT, plots.png(figure))


def draw_ladder(name: str) -> None:
    """Draw what the rungs of a ladder keep."""
    runs = json.loads(file_of(name).read_text())["runs"]
    figure = plots.ladder([rung_of(run) for run in runs], plots.Palette())
    write_whole(PLOT.with_name(f"{name.replace('/', '-')}.png"), plots.png(figure))


def rung_of(run: Mapping[str, Any]) -> plots.Rung:
    """Take a rung's point out of its run."""
    found, trained = run["eval"], run["finetune"]
    return plots.Rung(
        variant_of(run["changed"]),
        trained["trainable_parameters"],
        found["kept"],
        tuple(found["interval"]),
        trained["base_intact"],
    )


def variant_of(changed: Settings) -> str:
    """Name a rung, and what else was changed with it."""
    others = [
        f"{key.rpartition('.')[2]} {value}".removesuffix(" True")
        for key, value in changed.items()
        if key != "train.rung"
    ]
    return ", ".join([changed["train.rung"], *others])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="+", help=f"recipes of demo or smol, or {', '.join(STUDIES)}"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for each in given.names:
        study(each, given.out) if each in STUDIES else measure(each, given.out)
        if each == "demo/registers-study":
            draw()
        elif each.endswith("/ladder"):
            draw_ladder(each)
