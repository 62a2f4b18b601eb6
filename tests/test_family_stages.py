"""A family goes through all stages with a processor of its own, as its user takes it."""

import pytest
from transformers import AutoModelForImageTextToText

from tests.processors import PROCESSORS, tiny_family
from tests.test_family_steps import SIZES
from tests.tiny import tiny_data
from victorctl import checkpoint, convert, evaluate, finetune, peaks
from victorctl.bench import bench
from victorctl.recipe import Run, load_recipe


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["register-lora", "lora"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_it_is_converted_trained_and_measured(tmp_path, monkeypatch, name, rung):
    tiny_family(name).save_pretrained(tmp_path / "source")
    PROCESSORS[name]().save_pretrained(tmp_path / "source")
    data = tiny_data(tmp_path / "data", count=4, images=(1, 2), sizes=SIZES)
    flags = {
        **{"victor.registers": 3, "victor.drop_layer": 2, "data.train": str(data)},
        **{
            "train.rung": rung,
            "train.steps": 2,
            "train.batch_size": 2,
            "train.teacher_cache": False,
        },
        **{"eval.data": str(data), "eval.max_new_tokens": 3, "eval.repeats": 1},
        "eval.baselines": rung == "register-lora",
        **{"bench.speeds": ["prefill", "generate_2"], "bench.also": ["random", "no-image"]},
        **{"bench.batch_size": 2, "bench.repeats": 1},
    }
    monkeypatch.setattr(peaks, "apart", lambda *_: peaks.Peak(2, 1))
    recipe = load_recipe(flags=flags)
    run = {"device": "cpu", "quiet": True}

    made = convert(str(tmp_path / "source"), recipe=recipe, run=Run(out=tmp_path / "victor", **run))
    trained = finetune(tmp_path / "victor", recipe=recipe, run=Run(out=tmp_path / "model", **run))
    found = evaluate(tmp_path / "model", recipe=recipe, run=Run(**run))
    speed = bench(tmp_path / "model", recipe=recipe, run=Run(**run))

    assert (made["family"], made["init"]) == (name, "visual")
    assert made["parity"] == {"hashes_equal": True, "max_logit_difference": 0.0}
    assert trained["base_intact"] == (rung == "register-lora")
    hashes = (checkpoint.hash_base(tmp_path / folder) for folder in ("model", "source"))
    assert (next(hashes) == next(hashes)) == trained["base_intact"]
    assert found["mean_visual_tokens"]["model"] < found["mean_visual_tokens"]["base"]
    assert ({"pool", "random", "last", "no-image"} <= found["baselines"].keys()) == (
        rung == "register-lora"
    )
    assert [one["method"] for one in speed["variants"]] == ["random", "no-image"]
    assert min(speed["seconds"]["generate_2"].values()) > 0
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert stock.config.victor["registers"] == 3
