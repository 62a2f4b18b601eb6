"""Speed, memory and FLOPs are measured of what they are said to be of.

Faults planted and caught: memory of the model for that of the base, the tower in the prefill, the
rows of the base in a late layer's product, the base timed with the model's registers.
"""

import importlib
import json
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from tests.victor_models import victor_folder, victor_llava
from victorctl import cost, peaks
from victorctl.answering import Contestant
from victorctl.errors import VictorError
from victorctl.peaks import Peak
from victorctl.recipe import Run, load_recipe
from victorctl.subjects import subject
from victorctl.timing import Turn

STAGE = importlib.import_module("victorctl.bench")
KEYS = {
    *("dtype", "threads", "batch_size", "layers", "drop_layer", "registers", "flops", "seconds"),
    *("speedup", "share_of_bound", "peak_memory_bytes", "cache_bytes", "time_to_first_token"),
    *("decode_tokens_per_second", "throughput", "spread", "variants"),
}
PAIR = {"model", "base"}


def recipe(**bench):
    bench = {"batch_size": 2, "text": 10, "repeats": 1} | bench
    return load_recipe(flags={f"bench.{name}": value for name, value in bench.items()})


def run(**how):
    return Run(**{"device": "cpu", "quiet": True, **how})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return victor_folder(tmp_path_factory.mktemp("model"), victor_llava(registers=4, drop_layer=2))


@pytest.fixture
def apart(monkeypatch):
    """Measure no memory: that takes processes."""
    asked = []

    def answer(work, _about, name, batch):
        asked.append((work, name, batch))
        return {"base": Peak(100, 60), "model": Peak(70, 30)}[name]

    monkeypatch.setattr(peaks, "apart", answer)
    return asked


@pytest.fixture
def short(monkeypatch):
    """Write 6 tokens in place of 128."""
    monkeypatch.setattr("victorctl.bench.LENGTHS", {"generate_2": 2, "generate_128": 6})


@pytest.mark.usefixtures("short")
def test_everything_is_measured_of_model_base_and_variants(folder, apart, capsys):
    found = STAGE.bench(
        folder, recipe=recipe(also=["2@3", "random", "no-image"]), run=run(quiet=False)
    )

    assert set(found) >= KEYS
    json.dumps(found, allow_nan=False)
    assert set(found["flops"]) == {"base", "victor", "tower", "bound", "bound_with_tower"}
    for key in ("seconds", "spread", "cpu_seconds"):
        assert all(set(of) == PAIR for of in found[key].values()), key
    for key in ("peak_memory_bytes", "cache_bytes", "time_to_first_token"):
        assert set(found[key]) == PAIR, key
    assert set(found["seconds"]) == {"prefill", "generate_2", "generate_128"}
    assert set(found["share_of_bound"]) == {"prefill", "time_to_first_token"}
    assert found["peak_memory_bytes"] == {"model": 70, "base": 100}
    assert found["step_memory_bytes"] == {"model": 30, "base": 60}
    assert apart == [(STAGE.measure_memory, "base", 2), (STAGE.measure_memory, "model", 2)]
    settings = {"batch_size": 2, "layers": 6, "drop_layer": 2, "registers": 4, "dtype": "float32"}
    settings |= {"visual_tokens": 16, "text_tokens": 10, "measured": folder.name, "device": "cpu"}
    assert {key: found[key] for key in settings} == settings
    names = [(one["name"], one["method"], one["registers"]) for one in found["variants"]]
    assert names == [
        ("victor:2@3", "victor", 2), ("random:4@2", "random", 4), ("no-image", "no-image", 4),
    ]  # fmt: skip
    for one in found["variants"]:
        assert {"seconds", "flops", "cache_bytes", "speedup", "share_of_bound"} <= set(one)
    # Five contestants, four speeds, a round that does not count and one that does.
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("timings 40/40")


@pytest.mark.usefixtures("apart")
def test_flops_and_cache_are_those_of_one_prompt(folder):
    found = STAGE.bench(folder, recipe=recipe(speeds=["prefill"], also=["no-image"]), run=run())

    shape = cost.shape_of(victor_llava().config)
    tokens = {"base": [26] * 6, "model": [30] * 2 + [14] * 4}  # 16 visual, 10 others, 4 registers
    flops = {who: cost.prefill_flops(shape, of) for who, of in tokens.items()}
    assert (found["flops"]["base"], found["flops"]["victor"]) == (flops["base"], flops["model"])
    assert found["flops"]["bound"] == flops["base"] / flops["model"]
    assert found["flops"]["tower"] == cost.vision_flops(shape)
    assert found["cache_bytes"] == {who: cost.cache_bytes(shape, of) for who, of in tokens.items()}
    # Two layers of 16 + 4, four of 4.
    assert found["mean_visual_tokens"] == {"model": pytest.approx(56 / 6), "base": 16}
    (blind,) = found["variants"]
    assert (blind["cache_bytes"], blind["mean_visual_tokens"]) == (
        cost.cache_bytes(shape, [10] * 6),
        0,
    )
    assert found["seconds"]["generate_2"] == {"model": None, "base": None}


@pytest.mark.usefixtures("apart", "short")
def test_contestants_take_turns_on_the_same_prompts(folder, monkeypatch):
    about = subject(folder, recipe(also=["random"]), run(), (32, 32))
    track = STAGE.Track.of(about, about.load(), 2)
    model, told = track.contestants["model"].model, []
    read, see = model.get_decoder().forward, model.model.vision_tower.forward
    base = track.contestants["base"].model

    def reading(name, forward):
        def spy(*given, **named):
            rows, length = named["inputs_embeds"].shape[:2]
            told.append((name, rows, length))
            return forward(*given, **named)

        return spy

    def seeing(*given, **named):
        told.append(("tower", len(given[0] if given else named["pixel_values"])))
        return see(*given, **named)

    monkeypatch.setattr(model.get_decoder(), "forward", reading("ours", read), raising=False)
    monkeypatch.setattr(
        base.get_decoder(), "forward", reading("base", base.get_decoder().forward), raising=False
    )
    monkeypatch.setattr(model.model.vision_tower, "forward", seeing, raising=False)

    def of(name, speed):
        told.clear()
        with track.inside(name):
            track.run(name, speed)()
        return list(told)

    prompt, batch = 16 + 10, 2
    assert of("base", "prefill") == [("base", batch, prompt)]
    assert of("model", "prefill") == [("ours", batch, prompt)]
    assert of("random:4@2", "prefill") == [("ours", batch, prompt)]
    assert of("base", "time_to_first_token") == [("tower", 1), ("base", 1, prompt)]
    assert of("model", "generate_2") == [
        ("tower", batch), ("ours", batch, prompt), ("ours", batch, 1),
    ]  # fmt: skip
    assert len(of("model", "generate_128")) == 1 + 6


def test_a_batch_is_halved_until_it_fits(capsys):
    tried = []

    def work(count):
        tried.append(count)
        if count > 4:
            raise torch.OutOfMemoryError if count == 8 else BrokenProcessPool
        return "done"

    assert STAGE.largest([16, 8, 4, 2], work, fix="", quiet=False) == (4, "done")
    assert tried == [16, 8, 4]
    assert "prompts at once: 8 do not fit" in capsys.readouterr().err


def test_where_nothing_fits_it_is_said_how_to_need_less():
    def work(_count):
        raise torch.OutOfMemoryError

    with pytest.raises(
        VictorError, match="prompts at once: 3 do not fit into memory\n  fix: use less"
    ):
        STAGE.largest([3], work, fix="use less", quiet=True)


def test_more_registers_than_a_picture_has_tokens_are_refused():
    asked = recipe(shape="llava-1.5-7b", layers=3, width_scale=0.01, registers=600)
    about = subject(None, asked, run(), (32, 32))
    with pytest.raises(VictorError, match="victor:600@1: a picture has 576 visual tokens"):
        STAGE.Track.of(about, about.load(), 1)


def test_what_goes_wrong_in_another_process_is_said_as_it_is():
    with pytest.raises(VictorError) as refused:
        peaks.apart(fail)
    assert (refused.value.problem, refused.value.fix) == ("it is broken", "mend it")


def fail():
    raise VictorError("it is broken", fix="mend it")


def test_weights_that_do_not_fit_are_an_error_that_says_how_to_need_less(monkeypatch):
    def full(_about):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(STAGE.Subject, "load", full)
    monkeypatch.setattr(STAGE, "_memory_apart", lambda *_: {})
    with pytest.raises(
        VictorError, match=r"loading the weights was ended .*\n  fix: use a smaller"
    ):
        STAGE.bench(
            None, recipe=recipe(shape="llava-1.5-7b", layers=3, width_scale=0.01), run=run()
        )


@pytest.mark.parametrize("sizes", [{"layers": 4}, {"width_scale": 0.5}])
def test_the_sizes_of_a_folder_cannot_be_chosen(folder, sizes):
    with pytest.raises(VictorError, match="a model in a folder has the sizes that it has"):
        subject(folder, recipe(**sizes), run(), (32, 32))


def test_memory_is_that_of_short_answers_after_what_comes_but_once(folder, monkeypatch):
    told = []
    monkeypatch.setattr(peaks, "hold_only_what_is_used", lambda: told.append("hold"))
    held = iter([10, 25])
    monkeypatch.setattr(peaks, "taken", lambda _device: next(held))
    monkeypatch.setattr(peaks, "peak_of", lambda work, _device: (work(), 60)[1])
    generate = STAGE.generate
    monkeypatch.setattr(
        STAGE, "generate", lambda *given: told.append(given[1:]) or generate(*given)
    )
    about = subject(folder, recipe(), run(), (32, 32))

    assert STAGE.measure_memory(about, "model", 2) == Peak(50, 35)
    assert [told[0], *((len(prompts.ids), length) for prompts, length in told[1:])] == [
        "hold", (1, 1), (2, 2),
    ]  # fmt: skip


def test_a_gpus_memory_is_measured_where_time_is(folder, monkeypatch):
    about = subject(folder, recipe(speeds=["prefill"]), run(), (32, 32))
    model = about.load()
    monkeypatch.setattr(type(model), "device", property(lambda _self: torch.device("cuda")))
    track = STAGE.Track({"base": Contestant(model, None), "model": Contestant(model, None)}, 0, 0)
    monkeypatch.setattr(STAGE.Track, "of", lambda *_given: track)
    monkeypatch.setattr(STAGE.Track, "run", lambda *_given: None)
    monkeypatch.setattr(
        STAGE, "by_turns", lambda runs, **_how: {name: [Turn(1.0, None)] for name in runs}
    )
    monkeypatch.setattr(STAGE.Track, "peak", lambda _self, name, *_given, **_how: f"peak of {name}")

    assert STAGE._time(about, model, {}, 2).memory == {
        "base": "peak of base", "model": "peak of model",
    }  # fmt: skip


def test_products_are_compared_with_as_many_rows_as_layers_have_tokens(folder, monkeypatch):
    about = subject(folder, recipe(), run(), (32, 32))
    track = STAGE.Track.of(about, about.load(), 2)
    rows = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda given, matrix: rows.append(len(given)) or linear(given, matrix),
    )
    spent = {"few": 4.0, "many": 2.0}

    def turns(runs, **_how):
        for each in runs.values():
            each()
        return {name: [Turn(spent[name], None)] for name in runs}

    monkeypatch.setattr(STAGE, "by_turns", turns)

    # 2 prompts of 10 + 4 tokens in a late layer, 10 + 16 in the base; two of the one for one of
    # the other, so 56 rows in 4 seconds against 52 in 2.
    assert STAGE.product_rate(about, track, 1) == {
        "few_rows": 28, "many_rows": 52, "ratio": pytest.approx(14 / 26),
    }  # fmt: skip
    assert rows == [28, 28, 52]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llava-v1.6-mistral-7b", "llava-onevision-qwen2-7b"])
def test_other_shapes_are_measured_from_a_picture_in_tiles(shape):
    asked = recipe(shape=shape, layers=3, width_scale=0.03, also=["random"], batch_size=1)
    found = STAGE.bench(None, recipe=asked, run=run())

    assert found["visual_tokens"] > 2000
    assert found["flops"]["bound"] > 1
    assert min(found["peak_memory_bytes"].values()) > min(found["step_memory_bytes"].values()) > 0
