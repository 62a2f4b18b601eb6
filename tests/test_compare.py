"""Every method answers the same questions on the same weights, and what it spends is counted.

Faults planted and caught: what is planned reported in place of what was counted, Victor measured
with registers off, text left out of the costs, a comparison that starts again when it is resumed.
"""

import dataclasses
import json

import pytest

from tests.tiny import tiny_data, tiny_llava
from victorctl import base_answers, cost
from victorctl.compare import compare
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.files import read_lines
from victorctl.recipe import Run, load_recipe

QUIET = Run(device="cpu", quiet=True)
N, M, K, LAYERS, ROWS = 16, 3, 2, 6, 5
PROMPT_METHODS = "victor,random,fastv,vtc-cls,downsample,prumerge,no-image"


def settings(data, *more):
    made = [f"victor.registers={M}", f"victor.drop_layer={K}", "convert.verify=none"]
    asked = [f"eval.data={data}", "eval.max_new_tokens=3", "eval.repeats=0", "eval.batch_size=2"]
    return load_recipe(None, settings=[*made, *asked, *more])


@pytest.fixture(autouse=True)
def known(tmp_path, monkeypatch):
    """Keep what bases answer in a folder of the test's own."""
    monkeypatch.setattr(base_answers, "HF_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_llava(folder / "source")
    data = tiny_data(folder / "data", count=ROWS)
    run = dataclasses.replace(QUIET, out=folder / "model")
    convert(str(folder / "source"), recipe=settings(data), run=run)
    _answer_as_the_base(folder, data)
    return folder


def _answer_as_the_base(folder, data):
    """Let what the base says be right for all rows but the first: there is something to keep."""
    report = dataclasses.replace(QUIET, out=folder / "eval")
    evaluate(folder / "model", recipe=settings(data), run=report)
    said = [line["base"] for line in read_lines(folder / "eval" / "predictions.jsonl") if line]
    rows, last = json.loads(data.read_text()), -1
    for row, answer in list(zip(rows, said, strict=True))[1:]:
        row["conversations"][last]["value"] = answer or "nothing"
    data.write_text(json.dumps(rows))


@pytest.fixture
def run(place, tmp_path):
    def ask(*more, **how):
        recipe = settings(place / "data" / "data.json", *more)
        return compare(
            place / "model",
            recipe=recipe,
            run=dataclasses.replace(QUIET, out=tmp_path / "out", **how),
        )

    return ask


def by_method(found):
    return {row["method"]: row for row in found["rows"]}


def test_every_method_is_measured_at_every_budget(run, tmp_path):
    found = run(f"compare.methods={PROMPT_METHODS}", "compare.budgets=5,auto")

    auto = (K * (N + M) + (LAYERS - K) * M) / LAYERS
    names = PROMPT_METHODS.split(",")
    assert [(row["method"], row["budget"]) for row in found["rows"]] == [
        (name, budget) for budget in (5.0, auto) for name in names
    ]
    rows = {(row["method"], row["budget"]): row for row in found["rows"]}
    assert rows["victor", auto]["mean_visual_tokens"] == auto
    assert (
        rows["random", 5.0]["mean_visual_tokens"] == rows["vtc-cls", 5.0]["mean_visual_tokens"] == 5
    )
    assert rows["downsample", 5.0]["mean_visual_tokens"] == 4  # 2 x 2 patches
    assert rows["no-image", 5.0]["mean_visual_tokens"] == 0
    assert not rows["victor", 5.0]["reached"]
    assert found["questions"] == ROWS
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["schema"] == "victorctl/compare/1"
    assert written["rows"] == json.loads(json.dumps(found["rows"]))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json", "pareto.png", "pareto.svg",
    }  # fmt: skip


def test_victor_and_base_are_what_eval_measures(run, place, tmp_path):
    found = run("compare.methods=victor,random")
    report = dataclasses.replace(QUIET, out=tmp_path / "eval")
    evaluated = evaluate(place / "model", recipe=settings(place / "data" / "data.json"), run=report)
    victor = by_method(found)["victor"]
    assert victor["accuracy"] == evaluated["accuracy"]["model"]
    assert found["base"]["accuracy"] == evaluated["accuracy"]["base"]
    for key in ("mean_visual_tokens", "prefill_flops", "cache_bytes"):
        assert victor[key] == pytest.approx(evaluated[key]["model"])
        assert found["base"][key] == pytest.approx(evaluated[key]["base"])


def test_what_is_spent_is_counted_while_the_method_acts(run, monkeypatch, capsys):
    from victorctl.methods.floor import RandomTokens

    def choose(self, length, prompt):  # it keeps fewer than it plans
        return prompt.visual.new_tensor([0, 1])

    monkeypatch.setattr(RandomTokens, "choose", choose)
    row = by_method(run("compare.methods=random", "compare.budgets=5"))["random"]
    assert row["mean_visual_tokens"] == 2
    assert not row["reached"]
    assert (
        "random:count=5 planned 5.0 visual tokens per layer and spent 2.0"
        in capsys.readouterr().err
    )


def test_costs_follow_from_the_counted_tokens(run, place):
    found = run("compare.methods=fastv", "compare.budgets=8", "eval.limit=1")
    (row,) = found["rows"]
    from victorctl import checkpoint

    shape = cost.shape_of(checkpoint.load_config(place / "model"))
    text = (found["base"]["cache_bytes"] / cost.cache_bytes(shape, [1] * LAYERS)) - N
    entering = [N, N, 4, 4, 4, 4]  # (2 * 16 + 4 * 4) / 6 = 8
    assert row["mean_visual_tokens"] == 8
    assert row["cache_bytes"] == cost.cache_bytes(shape, [n + round(text) for n in entering])
    assert row["prefill_flops"] == cost.prefill_flops(shape, [n + round(text) for n in entering])


def test_an_interrupted_comparison_goes_on_with_the_same_result(run, tmp_path, monkeypatch):
    whole = run("compare.methods=random,vtc-cls", "compare.budgets=5")
    from victorctl import notebook

    add, calls = notebook.Notebook.add, []

    def stop(self, task, entries):
        add(self, task, entries)
        calls.append(len(entries))
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(notebook.Notebook, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run("compare.methods=random,vtc-cls", "compare.budgets=5")
    with pytest.raises(VictorError, match="another run lies here: max_new_tokens was 3, is 2"):
        run(
            *("compare.methods=random,vtc-cls", "compare.budgets=5", "eval.max_new_tokens=2"),
            resume=True,
        )
    seeds = "compare.settings={random: {seed: 7}}"
    with pytest.raises(VictorError, match="another run lies here: settings of methods was"):
        run("compare.methods=random,vtc-cls", "compare.budgets=5", seeds, resume=True)
    (left,) = (tmp_path / "out.answers").glob("*.jsonl")
    assert len([*read_lines(left)]) == 2
    again = run("compare.methods=random,vtc-cls", "compare.budgets=5", resume=True)
    assert again["rows"] == whole["rows"]
    assert sum(calls) == ROWS


@pytest.mark.parametrize("images", [(2,), (2, 1)])
def test_budgets_are_reached_however_many_pictures_a_question_has(place, tmp_path, images):
    data = tiny_data(tmp_path / "data", count=4, images=images)
    recipe = settings(data, "compare.methods=victor,random,vtc-cls", "compare.budgets=auto")
    where = dataclasses.replace(QUIET, out=tmp_path / "out")
    found = compare(place / "model", recipe=recipe, run=where)
    assert [row["reached"] for row in found["rows"]] == [True] * 3
    assert found["rows"][0]["budget"] == found["rows"][0]["mean_visual_tokens"]


def test_the_command_says_all_that_was_set(run):
    found = run("compare.methods=random", "compare.settings={random: {layer: 1}}", "seed=3")
    assert found["settings"]["command"] == (
        "victorctl compare model --data data/data.json --set eval.batch_size=2 "
        "--set eval.max_new_tokens=3 --set eval.repeats=0 --methods random --budgets auto "
        "--set compare.settings.random.layer=1 --seed 3 --device cpu"
    )
    assert found["settings"]["base_intact"]
    assert found["settings"]["data"] == "data.json"


def test_speeds_are_of_everybody_beside_the_base(run):
    found = run("compare.methods=victor,random,no-image", "compare.budgets=5", "eval.repeats=1")
    rows = by_method(found)
    assert rows["random"]["generate_128_speedup"] > 0
    assert rows["no-image"]["prefill_speedup"] > 0
    assert rows["no-image"]["generate_128_speedup"] is None


def test_what_cannot_be_compared_is_refused(run, place, tmp_path):
    with pytest.raises(VictorError, match="no method called 'vtccls'\n  fix: did you mean vtc-cls"):
        run("compare.methods=vtccls")
    with pytest.raises(VictorError, match="--base none: methods act on the base's"):
        run(base="none")
    with pytest.raises(VictorError, match="source: methods act on the base's weights inside"):
        run(base=str(place / "source"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(VictorError, match="out: holds something else than a comparison"):
        run()
