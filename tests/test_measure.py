"""The script that measures recipes: studies, what it keeps of them, and what is shown of it.

All numbers here are made up. Faults planted and caught: a run that is done is run again; nothing is
kept before the last run; a setting reaches a stage that does not read it; the mean of a part of the
seeds.
"""

import json
from pathlib import Path

import pytest

from scripts import measure
from tests import result_pages
from victorctl.plots import Point
from victorctl.recipe import load_recipe

OUT = Path("measured")
RECIPES = measure.ROOT / "recipes"
FOUND = {
    "convert": {"registers": 8, "drop_layer": 2, "positions": "overlay", "init": "visual"},
    "finetune": {
        **{"train": "registers", "steps": 1200, "trainable_parameters": 1536, "seconds": 90},
        **{"base_intact": True, "loss": {"first": 2.0, "last": 1.0}, "peak_memory_bytes": 600},
    },
    "eval": {
        **{"questions": 1000, "accuracy": {"model": 0.5, "base": 0.9}, "kept": 0.556},
        **{"interval": [0.54, 0.57], "by_type": {}, "mean_visual_tokens": {"model": 33.0}},
    },
}


@pytest.fixture
def done(tmp_path, monkeypatch):
    """Run nothing, and keep the commands that would have been run."""
    commands = []

    def run(words):
        commands.append(words)
        return {**FOUND[words[1]], "cache_bytes": 1}

    study = measure.Study(
        "demo/quick", {"train.steps": 3}, ({}, {"seed": 1}, {"train.rung": "deep"})
    )
    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setitem(measure.STUDIES, "demo/small", study)
    return commands


def kept(folder):
    return json.loads((folder / "demo-small.json").read_text())["runs"]


def test_every_run_of_a_study_is_kept_as_soon_as_it_is_done_and_not_run_again(
    done, tmp_path, monkeypatch
):
    def stop(words):
        if len(done) == 4:  # in the middle of the second run
            raise KeyboardInterrupt
        return run(words)

    run = measure.run
    monkeypatch.setattr(measure, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        measure.study("demo/small", OUT)
    (first,) = kept(tmp_path)
    monkeypatch.setattr(measure, "run", run)
    measure.study("demo/small", OUT)

    assert [words[1] for words in done[4:]] == ["convert", "finetune", "eval"] * 2
    assert kept(tmp_path)[0] == first
    assert [each["changed"] for each in kept(tmp_path)] == [{}, {"seed": 1}, {"train.rung": "deep"}]
    measure.study("demo/small", Path("elsewhere"))
    assert len(done) == 10  # nothing is left to do, in whichever folder


def test_runs_of_another_recipe_or_model_are_not_mixed_in(done, tmp_path, monkeypatch):
    measure.study("demo/small", OUT)
    before = (tmp_path / "demo-small.json").read_bytes()
    monkeypatch.setattr(measure, "made_of", lambda recipe: {"source_sha256": "another"})

    with pytest.raises(
        SystemExit, match=r"demo-small.json: runs of another recipe or model\n  fix:"
    ):
        measure.study("demo/small", OUT)

    assert (tmp_path / "demo-small.json").read_bytes() == before


def test_a_run_is_kept_with_its_commands_and_what_they_found(done, tmp_path):
    measure.study("demo/small", OUT)

    run = kept(tmp_path)[2]
    assert {stage: run[stage] for stage in FOUND} == FOUND
    name = "quick-rung-deep"
    assert run["commands"] == [
        f"victorctl convert demo --out {name}-converted --recipe demo/quick",
        f"victorctl finetune {name}-converted --out {name} --recipe demo/quick "
        "--set train.steps=3 --set train.rung=deep",
        f"victorctl eval {name} --recipe demo/quick",
    ]
    assert [words[-1] for words in done[-3:-1]] == ["--overwrite"] * 2


COUNTS = {  # runs, and models that are made for them
    "demo/positions": (12, 12),
    "smol/positions": (12, 12),
    "demo/registers-study": (6, 6),
    "demo/elastic": (14, 6),
    "demo/ladder": (14, 14),
    "smol/ladder": (12, 12),
}


def test_every_study_is_tried():
    assert COUNTS.keys() == measure.STUDIES.keys()


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_the_settings_of_a_study_are_keys_of_the_recipe_and_no_two_runs_are_the_same(name, counts):
    study = measure.STUDIES[name]
    commands = [measure.stages_of(study, variant, OUT) for variant in study.variants]

    assert len({tuple(measure.typed(each, OUT)) for each in commands}) == counts[0]
    folders = [
        each[stage][each[stage].index("--out") + 1]
        for each in commands
        for stage in ("convert", "finetune")
    ]
    assert len(set(folders)) == 2 * counts[1]
    for variant in study.variants:
        load_recipe(RECIPES / f"{study.recipe}.yaml", flags={**study.shared, **variant})


def test_variants_of_registers_alone_are_told_apart():
    variants = measure.STUDIES["demo/registers-study"].variants
    names = [measure.name_of(variant) for variant in variants]

    assert names[:2] == ["demo/registers", "1,600 steps"]
    assert len(set(names)) == 6


def runs_of(name, values, **changes):
    """Make up what a study kept: a share for each variant, None where it was not run."""
    for variant, kept in zip(measure.STUDIES[name].variants, values, strict=True):
        if kept is not None:
            run = {stage: dict(found) for stage, found in FOUND.items()} | {"changed": variant}
            run["eval"]["kept"] = kept
            own = {key.rpartition(".")[2]: value for key, value in variant.items()}
            run["convert"] |= {key: own[key] for key in run["convert"] if key in own}
            yield run


def test_positions_are_compared_seed_by_seed_and_the_mean_is_over_all_of_them():
    shares = [0.9, 0.8, 0.7, 0.6, 0.92, 0.82, 0.72, 0.62, 0.94, None, 0.74, 0.64]
    text = result_pages.starts(list(runs_of("demo/positions", shares)))

    assert text.splitlines()[0] == "After 1200 steps of `registers`, on 1,000 questions:"
    first = "| `--positions overlay` | `--init visual` | 90.0 % | 92.0 % | 94.0 % | 92.0 % |"
    second = "| `--positions overlay` | `--init embeddings` | 80.0 % | 82.0 % |  |  |"
    assert text.splitlines()[4:6] == [first, second]
    assert len(text.splitlines()) == 8


def test_registers_alone_are_listed_and_drawn_beside_what_they_are_measured_against():
    runs = list(runs_of("demo/registers-study", [0.5, *[None] * 4, 0.8]))
    numbers = {"kept": 0.9, "mean_visual_tokens": 31.0}
    victor = {
        **{"mean_visual_tokens": {"model": 33.0, "base": 100.0}, "kept": 0.99},
        **{"interval": [0.98, 1.0], "baselines": {"last": numbers, "pool": numbers}},
    }

    assert result_pages.alone(runs).splitlines()[4:6] == [
        "| demo/registers | 33 | 1,536 | 1,200 | 50.0 % | 50.0 % (54.0\u201357.0) | 2 |",
        "| M=16 | 33 | 1,536 | 1,200 | 50.0 % | 80.0 % (54.0\u201357.0) | 2 |",
    ]
    assert measure.points(runs, {"eval": victor}) == [
        Point("base", 100.0, 1.0, kind="base"),
        Point("register-lora", 33.0, 0.99),
        Point("pool", 31.0, 0.9),
        Point("2 ways", 33.0, 0.65, kind="model"),  # as many tokens: they would lie on each other
    ]
    runs[1]["eval"]["mean_visual_tokens"] = {"model": 41.0}
    assert measure.points(runs, {"eval": victor})[3:] == [
        Point("demo/registers", 33.0, 0.5, kind="model"),
        Point("M=16", 41.0, 0.8, kind="model"),
    ]
