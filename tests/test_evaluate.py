"""An evaluation reports what was answered and what it cost, and writes it where it belongs."""

import dataclasses
import importlib
import json
import math
import re

import pytest
import torch
from PIL import Image

from tests.tiny import VISUAL_TOKENS, tiny_data, tiny_llava, tiny_picture, tiny_processor
from victorctl import cost, runtime, spending
from victorctl import evaluate as package_function
from victorctl.asking import Answers, Asking
from victorctl.contestants import load_shipped
from victorctl.convert import convert
from victorctl.evaluate import evaluate
from victorctl.findings import side_by_side
from victorctl.questions import Size
from victorctl.recipe import Run, load_recipe

STAGE = importlib.import_module("victorctl.evaluate")  # `victorctl.evaluate` is the function
QUIET = Run(device="cpu", quiet=True)
PAIRS = {
    *("accuracy", "mean_visual_tokens", "prefill_flops", "cache_bytes"),
    *("time_to_first_token", "decode_tokens_per_second", "vision_flops"),
}
KEYS = PAIRS | {
    *("questions", "kept", "interval", "agreement", "by_type", "speedup", "baselines"),
    *("report", "weights_sha256"),
}
M, K, LAYERS, N = 3, 2, 6, VISUAL_TOKENS


def settings(data, *more):
    made = ["victor.registers=3", "victor.drop_layer=2", "convert.verify=none"]
    asked = [f"eval.data={data}", "eval.max_new_tokens=3", "eval.repeats=1", "eval.batch_size=4"]
    return load_recipe(None, settings=[*made, *asked, *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A converted model and data whose answers are the base's own, but for one that is wrong."""
    folder = tmp_path_factory.mktemp("place")
    tiny_llava(folder / "source")
    data = tiny_data(folder / "data", count=6)
    run = dataclasses.replace(QUIET, out=folder / "model")
    convert(str(folder / "source"), recipe=settings(data), run=run)
    return folder


@pytest.fixture
def fast(monkeypatch):
    """Timings that are known instead of measured."""
    seconds = {
        "first_token": {"model": 0.25, "base": 0.5},
        "prefill": {"model": 1.0, "base": 3.0},
        "generate_2": {"model": 1.5, "base": 3.0},
        "generate_128": {"model": 7.5, "base": 12.0},
    }

    def known(contestants, **_):
        return {key: {who: of[who] for who in contestants} for key, of in seconds.items()}

    monkeypatch.setattr(spending, "speed", known)
    monkeypatch.setattr(spending, "prefills", lambda who, *_, **__: dict.fromkeys(who, 2.0))


def predictions(folder):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ---- One real run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(place):
    recipe = settings(place / "data" / "data.json", "eval.baselines=true", "seed=4")
    return evaluate(place / "model", recipe=recipe, run=QUIET), place / "model" / "eval"


def test_every_key_is_there_and_fits_into_json(measured):
    result, folder = measured

    assert set(result) >= KEYS
    written = json.loads((folder / "report.json").read_text())
    assert set(written) >= KEYS - {"report"}
    assert json.loads(json.dumps(result))["accuracy"] == written["accuracy"]
    assert result["report"] == str(folder / "report.html")
    assert sorted(path.name for path in folder.iterdir())[:2] == [
        "predictions.jsonl",
        "report.html",
    ]
    assert set(result["speedup"]) == {"prefill", "generate_2", "generate_128"}
    assert set(result["baselines"]) == {"no-image", "no-registers", "random", "last", "pool"}
    assert all(
        set(row) == {"accuracy", "kept", "interval", "mean_visual_tokens", "speedup"}
        for row in result["baselines"].values()
    )


def test_without_repeats_no_speed_is_measured_and_the_report_says_none(place, monkeypatch):
    monkeypatch.setattr(spending, "speed", lambda *_args, **_more: pytest.fail("timed"))
    recipe = settings(place / "data" / "data.json", "eval.repeats=0")
    run = dataclasses.replace(QUIET, out=place / "untimed")

    result = evaluate(place / "model", recipe=recipe, run=run)

    assert set(result) >= KEYS
    assert set(result["speedup"].values()) == {None}
    assert result["time_to_first_token"] == {"model": None, "base": None}
    assert "first token takes" not in (place / "untimed" / "report.html").read_text()


def test_every_prediction_is_kept(measured, place):
    result, folder = measured
    lines = predictions(folder)

    assert [line["id"] for line in lines] == [f"row-{n}" for n in range(6)]
    assert result["questions"] == 6
    assert [line["unit"] for line in lines] == list(range(6))  # each has pictures of its own
    assert set(lines[0]) == {
        *("id", "unit", "type", "question", "answers", "model", "base", "right"),
        *result["baselines"],
    }
    data = json.loads((place / "data" / "data.json").read_text())
    assert [line["answers"] for line in lines] == [
        [row["conversations"][-1]["value"]] for row in data
    ]
    agreeing = sum(line["model"] == line["base"] for line in lines)
    assert result["agreement"] == agreeing / 6


def test_costs_are_those_of_the_prompts(measured, place):
    result, _ = measured
    model = load_shipped(place / "model", QUIET)
    row = json.loads((place / "data" / "data.json").read_text())[0]
    assert len(row["conversations"]) == 4

    # Layers 0 and 1 of 6 see 16 + 3, the others 3; baselines 16 and 3, or 16 and none.
    assert result["mean_visual_tokens"] == {"model": (2 * 19 + 4 * 3) / 6, "base": 16}
    tokens = {name: row["mean_visual_tokens"] for name, row in result["baselines"].items()}
    kept = (2 * 16 + 4 * 3) / 6
    assert tokens == {
        "no-image": 0,
        "no-registers": 2 * 16 / 6,
        "random": kept,
        "last": kept,
        "pool": kept,
    }
    assert result["prefill_flops"]["model"] < result["prefill_flops"]["base"]
    assert result["omissions"] == []
    assert {key: result["settings"][key] for key in ("registers", "drop_layer")} == {
        "registers": model.config.victor["registers"],
        "drop_layer": 2,
    }


@torch.no_grad()
def test_the_cache_is_as_large_as_is_said(place, fast, tmp_path):
    one = settings(place / "data" / "data.json", "eval.limit=1")
    result = evaluate(
        place / "model", recipe=one, run=dataclasses.replace(QUIET, out=tmp_path / "e")
    )
    model, processor = load_shipped(place / "model", QUIET), tiny_processor()
    row = json.loads((place / "data" / "data.json").read_text())[0]
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": [{"type": "text", "text": turn["value"]}]}
        for n, turn in enumerate(row["conversations"][:-1])
    ]
    turns[0]["content"] = [
        {"type": "image"},
        {"type": "text", "text": row["conversations"][0]["value"].replace("<image>\n", "")},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    with Image.open(place / "data" / row["image"]) as picture:
        inputs = processor(images=[picture], text=[text], return_tensors="pt")

    def real():
        layers = model(**inputs, use_cache=True).past_key_values.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    ours = real()
    with model.registers_off():
        theirs = real()
    assert result["cache_bytes"] == {"model": ours, "base": theirs}


def test_settings_say_what_was_measured_and_how(measured, place):
    result, folder = measured
    found = result["settings"]

    assert (found["model"], found["base"], found["data"]) == ("model", "model", "data.json")
    assert found["train"] is None
    assert found["base_intact"] is True
    assert (found["dtype"], found["device"], found["attention"]) == ("float32", "cpu", "sdpa")
    assert found["threads"] == torch.get_num_threads()
    assert (found["seed"], found["batch_size"], found["speed_batch_size"]) == (4, 4, 4)
    assert found["command"] == (
        "victorctl eval model --data data/data.json --set eval.batch_size=4 "
        "--set eval.max_new_tokens=3 "
        "--set eval.baselines=true --set eval.repeats=1 --seed 4 --device cpu"
    )
    assert str(place) not in (folder / "report.json").read_text()
    assert "untrained" in (folder / "report.html").read_text().lower()


def test_the_command_repeats_what_was_typed(place, fast, tmp_path):
    data, more = place / "data" / "data.json", ["eval.limit=1", "seed=3"]
    run = Run(
        out=tmp_path / "e", base=str(place / "source"), quiet=True,
        device="cpu", dtype="bf16", attn="eager", threads=torch.get_num_threads(),
    )  # fmt: skip

    found = evaluate(place / "model", recipe=settings(data, *more), run=run)["settings"]

    assert found["command"] == (
        "victorctl eval model --data data/data.json --set eval.limit=1 --set eval.batch_size=4 "
        "--set eval.max_new_tokens=3 --set eval.repeats=1 --seed 3 --base source --device cpu "
        f"--dtype bf16 --attn eager --threads {torch.get_num_threads()}"
    )


def test_each_phase_is_told_on_stderr(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "SECONDS_BETWEEN_LINES", math.inf)  # only the last of each phase
    run = Run(out=tmp_path / "e", device="cpu", base=str(place / "source"))
    data = place / "data" / "data.json"
    evaluate(place / "model", recipe=settings(data), run=run)

    told = [re.sub(r" ·.*", "", line) for line in capsys.readouterr().err.splitlines()]
    assert told == [
        f"{data}: JSON: conversations, as LLaVA and ShareGPT have them; 6 rows",
        f"hashing and loading {place / 'model'}",
        f"loading its base {place / 'source'}",
        "answers 12/12",  # six questions, two contestants
        "timings 16/16",  # four speeds, twice, two contestants
        "writing the report",
    ]


# ---- Worked numbers ------------------------------------------------------------------------------


def test_every_number_follows_from_the_answers_and_the_times(place, fast, monkeypatch, tmp_path):
    # Rows 0 to 5 with answers a0 to a5. The base is right in 0 to 3, the model in 1, 2 and 5, and
    # in 4 both say x: the same answer in 1, 2 and 4. Of the baselines only "last" is right, once.
    data = place / "data" / "known.json"
    rows = json.loads((place / "data" / "data.json").read_text())
    for number, row in enumerate(rows):
        row["conversations"][-1]["value"] = f"a{number}"
        row["type"] = "even" if number % 2 == 0 else "odd"
        row["image"] = f"{number // 2}.png"
    data.write_text(json.dumps(rows))
    texts = {
        "base": ["a0", "A1.", "a2", "a3", "x", "y"],
        "model": ["n", "a1", "a2 ", "n", "X", "a5"],
        "last": ["a0", "", "", "", "", ""],
    }

    def answer(asking, task, asked, notebook):
        assert [question.id for question in asked] == [row["id"] for row in rows]
        told = {name: texts.get(name, ["?"] * 6) for name in asking.contestants}
        sizes = [Size(16, 4, 1)] * 3 + [Size(32, 10, 2)] * 2 + [Size(0, 6, 0)]
        counted = [[16] * 2 + [3] * 4] * 3 + [[32] * 2 + [6] * 4] * 2 + [[0] * 6]
        entered = dict.fromkeys(told, counted) | {"no-image": [[0] * 6] * 6}
        return Answers(told, sizes, [0.5, 0.25, 0, 0, 0, 0], entered=entered)

    monkeypatch.setattr(Asking, "ask_on", answer)
    run = dataclasses.replace(QUIET, out=tmp_path / "out")
    result = evaluate(place / "model", recipe=settings(data, "eval.baselines=true"), run=run)

    assert result["accuracy"] == {"model": 3 / 6, "base": 4 / 6}
    assert result["kept"] == pytest.approx(3 / 4)
    assert result["agreement"] == 3 / 6
    assert result["by_type"] == {
        # Rows 0, 2 and 4, and each about a picture of its own: right 0:1, 1:1 and 0:0 times.
        "even": {"model": 1 / 3, "base": 2 / 3, "questions": 3, "kept": 1 / 2, "interval": [0, 1]},
        # Right 1:1, 0:1 and 1:0 times: from 0:3, one draw in 26, to 3:1, three in 26.
        "odd": {"model": 2 / 3, "base": 2 / 3, "questions": 3, "kept": 1, "interval": [0, 3]},
    }
    assert result["first_token_kl"] == 0.75 / 6
    assert result["benchmarks"] == {}
    # Pictures are right 1:2, 1:2 and 1:0 times. Three draws of them give 3:6 or 3:4 or 3:2, and in
    # one of 27 draws 3:0, which is left out; 3:6 and 3:2 are too frequent to be cut off.
    assert result["interval"] == pytest.approx([0.5, 1.5])
    assert result["baselines"]["last"]["accuracy"] == 1 / 6
    assert result["baselines"]["last"]["kept"] == pytest.approx(1 / 4)
    # Three questions with one picture, two with two, one without: means over all six.
    base, model, last = (3 * 16 + 2 * 32) / 6, (3 * 50 + 2 * 100) / 6 / 6, (3 * 44 + 2 * 88) / 6 / 6
    assert result["mean_visual_tokens"] == {
        "model": pytest.approx(model),
        "base": pytest.approx(base),
    }
    assert result["baselines"]["last"]["mean_visual_tokens"] == pytest.approx(last)
    assert result["baselines"]["no-image"]["mean_visual_tokens"] == 0
    # Keys and values 2 x 2 heads x 8 wide in 4 bytes: 128 for each token and layer.
    lengths = 3 * (2 * 23 + 4 * 7) + 2 * (2 * 48 + 4 * 16) + 6 * 6
    assert result["cache_bytes"]["model"] == pytest.approx(128 * lengths / 6)
    assert result["cache_bytes"]["base"] == pytest.approx(128 * 6 * (3 * 20 + 2 * 42 + 6) / 6)
    seeing = 7 / 6 * cost.vision_flops(cost.shape_of(load_shipped(place / "model", QUIET).config))
    assert result["vision_flops"] == {
        "model": pytest.approx(seeing),
        "base": pytest.approx(seeing),
    }
    assert result["time_to_first_token"] == {"model": 0.25, "base": 0.5}
    assert result["speedup"] == {"prefill": 3.0, "generate_2": 2.0, "generate_128": 1.6}
    assert result["decode_tokens_per_second"] == {"model": 4 * 126 / 6, "base": 4 * 126 / 9}


def test_answers_that_differ_are_shown_as_many_as_asked_for(place, fast, monkeypatch, tmp_path):
    data = place / "data" / "data.json"
    shown = []

    def answer(asking, task, asked, notebook):
        model = ["same", "b1", "b2", "SAME.", "b4", "b5"]
        return Answers({"model": model, "base": ["same"] * 6}, [Size(16, 4, 1)] * 6)

    def write(result, differences, folder):
        shown.append(differences)
        return folder / "report.html"

    monkeypatch.setattr(Asking, "ask_on", answer)
    monkeypatch.setattr(STAGE.report, "write", write)
    for count, name in ((9, "all"), (2, "a"), (2, "b"), (2, "c"), (2, "d"), (0, "none")):
        evaluate(
            place / "model",
            recipe=settings(data, f"eval.differences={count}", "seed=1"),
            run=dataclasses.replace(QUIET, out=tmp_path / name),
        )

    everything, *drawn, none = shown
    assert [card["model"] for card in everything] == ["b1", "b2", "b4", "b5"]
    assert {len(cards) for cards in drawn} == {2}
    assert len({tuple(card["model"] for card in cards) for cards in drawn}) == 1
    assert none == []
    card = everything[0]
    assert card["picture"].tobytes() == tiny_picture(1).tobytes()
    assert (card["base"], card["model_right"], card["base_right"]) == ("same", False, False)
    assert set(card) >= {"question", "answer", "type"}


def test_several_pictures_are_shown_side_by_side():
    left, right = Image.new("RGB", (2, 3), "red"), Image.new("RGB", (4, 1), "blue")

    whole = side_by_side([left, right])

    assert whole.size == (6, 3)
    assert whole.getpixel((1, 2)) == (255, 0, 0)
    assert whole.getpixel((2, 0)) == (0, 0, 255)
    assert whole.getpixel((5, 2)) == (255, 255, 255)


def test_without_a_base_its_half_is_open(place, fast, tmp_path):
    run = dataclasses.replace(QUIET, base="none", out=tmp_path / "alone")
    result = evaluate(place / "model", recipe=settings(place / "data" / "data.json"), run=run)

    for key in PAIRS:
        assert result[key]["base"] is None
        assert result[key]["model"] is not None
    assert result["kept"] is result["interval"] is result["agreement"] is None
    assert result["speedup"] == {"prefill": None, "generate_2": None, "generate_128": None}
    assert result["baselines"] == {}
    assert "base" not in predictions(tmp_path / "alone")[0]
    assert result["settings"]["base"] is None


def test_another_base_costs_what_its_own_sizes_say(place, fast, tmp_path):
    small = tiny_llava(tmp_path / "small", layers=4)
    recipe = settings(place / "data" / "data.json")
    costs = {}
    for base in (place / "source", small):
        run = dataclasses.replace(QUIET, base=str(base), out=tmp_path / f"{base.name}-report")
        result = evaluate(place / "model", recipe=recipe, run=run)
        costs[base.name] = result["cache_bytes"]["base"], result["mean_visual_tokens"]["base"]

    assert costs["small"] == (pytest.approx(costs["source"][0] * 4 / 6), 16)


# ---- Where it goes -------------------------------------------------------------------------------


def test_an_earlier_report_is_replaced_whole(place, fast, tmp_path):
    out = tmp_path / "out"
    run, recipe = dataclasses.replace(QUIET, out=out), settings(place / "data" / "data.json")
    evaluate(place / "model", recipe=recipe, run=run)
    (out / "report.html").write_text("of the first run")

    evaluate(place / "model", recipe=recipe, run=run)

    assert (out / "report.html").read_text() != "of the first run"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_package_offers_the_stage():
    assert package_function is evaluate
