"""Call `finetune` in few words, on tiny models and data."""

from pathlib import Path

from tests.tiny import tiny_data
from tests.victor_models import victor_folder, victor_llava
from victorctl import checkpoint, lineage
from victorctl.recipe import Recipe, Run

QUICK = {
    "steps": 6,
    "batch_size": 2,
    "questions": 2,
    "rank": 3,
    "checkpoint_every": 2,
    "warmup": 0.2,
}


def prepare(folder, monkeypatch, **settings):
    """Make a converted model in several shards, and data; predictions are kept in hf/ beside."""
    monkeypatch.setattr("victorctl.teacher.HF_HOME", str(folder / "hf"))
    model = victor_folder(folder / "model", victor_llava(**settings), max_shard_size="40KB")
    assert len(checkpoint.weight_files(model)) > 1
    lineage.add_stage(
        model, command="convert", settings={}, seed=0, base_intact=True,
        parent_sha256=lineage.hash_of(checkpoint.hash_base(model)),
    )  # fmt: skip
    return model, tiny_data(folder / "data", 5)


def recipe(data, rung="register-lora", seed=0, **train):
    return Recipe(seed=seed, data={"train": str(data)}, train={**QUICK, "rung": rung, **train})


def run(out, **how):
    return Run(out=Path(out), **{"device": "cpu", "quiet": True, **how})
