"""What a training step costs is measured on steps that are what they are called.

Faults planted and caught: a cache that is full is filled, one that is never full, a tower that is
trained, memory of a step that counts the weights.
"""

import importlib
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from victorctl import peaks
from victorctl.errors import VictorError
from victorctl.peaks import Peak
from victorctl.recipe import Run, load_recipe

STAGE = importlib.import_module("victorctl.bench_train")
TINY = {"layers": 3, "width": 32, "batch_size": 1, "questions": 2, "repeats": 1}
SECONDS = {"naive": 8.0, "unconverted": 20.0, "live_teacher": 6.0, "cached_teacher": 2.0}


def recipe(**bench):
    return load_recipe(flags={f"bench.{name}": value for name, value in (TINY | bench).items()})


def run(**how):
    return Run(**{"device": "cpu", "quiet": True, **how})


@pytest.fixture
def shop():
    with STAGE._workshop(recipe(), run()) as made:
        yield made


@pytest.mark.slow
def test_time_and_memory_of_every_step_are_measured(capsys):
    found = STAGE.train(recipe=recipe(), run=run(quiet=False))

    assert set(found["seconds"]) == {*STAGE.STEPS, "fill_cache"}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    for key in ("peak_memory_bytes", "step_memory_bytes"):
        assert list(found[key]) == list(STAGE.STEPS)
    assert found["peak_memory_bytes"]["naive"] > found["step_memory_bytes"]["naive"] > 0
    assert found["ratio"]["cached_teacher"] == (
        found["seconds"]["cached_teacher"] / found["seconds"]["naive"]
    )
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("bench train 14/14")


def test_every_step_is_timed_on_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(peaks, "apart", lambda *_: Peak(10, 4))
    found = STAGE.train(recipe=recipe(), run=run())

    assert list(found)[:3] == ["seconds", "cpu_seconds", "peak_memory_bytes"]
    assert set(found["cpu_seconds"]) == set(found["seconds"])
    assert set(found["seconds"]) == {*STAGE.STEPS, "fill_cache"}
    assert found["ratio"]["memory"] == 1
    settings = {"dtype": "float32", "device": "cpu", "drop_layer": 2, "registers": 8}
    settings |= {"visual_tokens": 576, "text_tokens": 64, **TINY}
    assert {name: found[name] for name in settings} == settings
    assert set(found["steps"]) == set(found["seconds"])


def test_the_steps_of_the_converted_model_train_registers_and_leave_the_base(shop, monkeypatch):
    models = []
    choose = STAGE.choose_parameters
    monkeypatch.setattr(
        STAGE,
        "choose_parameters",
        lambda model, settings: models.append(model) or choose(model, settings),
    )
    made = STAGE.converted(shop, shop.batch())
    (model,) = models

    for name, step in made.steps.items():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        step()
        moved = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
        assert "victor.registers.weight" in moved, name
        assert all(key.startswith("victor.") for key in moved), name
    assert set(made.steps) == {"naive", "live_teacher", "cached_teacher", "fill_cache"}
    registers = sum(value.numel() for value in model.victor.parameters())
    assert made.parameters == {"model": model.num_parameters(), "trained": registers}


def test_the_unconverted_model_is_trained_but_for_its_tower(shop, monkeypatch):
    models, native = [], STAGE.LlavaForConditionalGeneration
    monkeypatch.setattr(
        STAGE,
        "LlavaForConditionalGeneration",
        lambda config: models.append(native(config)) or models[-1],
    )
    made = STAGE.unconverted(shop, shop.batch())
    (model,) = models
    before = {key: value.clone() for key, value in model.state_dict().items()}

    made.steps["unconverted"]()

    moved = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert moved == {key for key in before if "vision_tower" not in key}


def test_the_teacher_is_read_by_all_but_the_step_that_finds_it_on_disk(shop, monkeypatch):
    asked = []
    teach, naive = STAGE.Distillation._teach, STAGE.naive_loss
    monkeypatch.setattr(
        STAGE.Distillation,
        "_teach",
        lambda self, *given: asked.append("teacher") or teach(self, *given),
    )
    monkeypatch.setattr(
        STAGE, "naive_loss", lambda *given: asked.append("teacher") or naive(*given)
    )
    steps = STAGE.converted(shop, shop.batch()).steps
    steps["cached_teacher"]()  # fills its cache, as the round of timings that does not count

    def teachers(name):
        asked.clear()
        steps[name]()
        return len(asked)

    assert {name: [teachers(name), teachers(name)] for name in steps} == {
        "naive": [1, 1],
        "live_teacher": [1, 1],
        "cached_teacher": [0, 0],
        "fill_cache": [1, 1],
    }
    written = sorted(len([*folder.rglob("*.safetensors")]) for folder in shop.folder.iterdir())
    assert written == [1, 1, 1]  # once for `cached_teacher`, and twice for `fill_cache`


def test_memory_is_that_of_the_second_step(shop, monkeypatch):
    held = iter([100, 150])
    monkeypatch.setattr(peaks, "taken", lambda _device: next(held))
    done = []
    monkeypatch.setattr(
        STAGE,
        "converted",
        lambda _shop, _batch: STAGE.Made({"naive": lambda: done.append("step")}, {}),
    )
    monkeypatch.setattr(
        peaks, "peak_of", lambda step, _device: (done.append("peak"), step())[0] or 190
    )

    assert STAGE.measure_memory("naive", shop, None) == Peak(90, 40)
    assert done == ["step", "peak", "step"]

    held = iter([100, 150])
    monkeypatch.setattr(peaks, "peak_of", lambda _step, _device: None)
    assert STAGE.measure_memory("naive", shop, None) == Peak(None, None)


def test_ratios_are_ours_over_the_naive_step_and_the_cached_one_over_fine_tuning():
    peaks = {"naive": 100, "unconverted": 400, "live_teacher": 70, "cached_teacher": 50}
    above = {name: peak - 30 for name, peak in peaks.items()}

    assert STAGE.ratios(SECONDS, peaks, above) == {
        "live_teacher": 0.75,
        "cached_teacher": 0.25,
        "memory": 0.5,
        "of_unconverted": 0.1,
        "memory_of_step": 2 / 7,
        "memory_of_unconverted": 0.125,
    }
    unknown = dict.fromkeys(peaks)
    assert STAGE.ratios(SECONDS, unknown, unknown)["memory"] is None


@pytest.mark.parametrize(
    ("filling", "passes"),
    [
        (6.5, 2),  # 6.5 + 2 against 6 + 6
        (5.9, 1),  # never slower
        (10.0, 3),  # 10 + 2 is not less than 12; 10 + 4 is less than 18
    ],
)
def test_the_cache_pays_from_the_pass_on_after_which_all_took_less(filling, passes):
    assert STAGE.pays_after({**SECONDS, "fill_cache": filling}) == passes


def test_a_cache_that_saves_nothing_never_pays():
    assert STAGE.pays_after({**SECONDS, "cached_teacher": 6.0, "fill_cache": 7.0}) is None


def test_numbers_in_which_gradients_vanish_are_refused():
    with pytest.raises(VictorError, match=r"fp16: small gradients vanish.*\n  fix: use --"):
        STAGE.train(recipe=recipe(), run=run(dtype="fp16"))


@pytest.mark.parametrize("error", [BrokenProcessPool(), torch.OutOfMemoryError()])
def test_full_memory_is_an_error_that_says_how_to_need_less(monkeypatch, error):
    def full(*_given):
        raise error

    monkeypatch.setattr(peaks, "apart", full)
    with pytest.raises(
        VictorError, match="memory ran out, most likely\n  fix: use a smaller --batch"
    ):
        STAGE.train(recipe=recipe(), run=run())


def test_the_number_format_is_that_which_was_asked_for():
    with STAGE._workshop(recipe(), run(dtype="bf16")) as made:
        assert made.dtype == torch.bfloat16
