"""An evaluation asks benchmarks as it asks any data, and averages their scores."""

import dataclasses
import json

import pytest

from tests.benchmarks import storage
from tests.tiny import tiny_llava
from victorctl import base_answers
from victorctl.answering import BASE, MODEL
from victorctl.asking import Answers, Asking
from victorctl.benchmarks import BENCHMARKS, PAPER, benchmark
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.files import read_lines
from victorctl.findings import Finding, quality
from victorctl.questions import Size
from victorctl.recipe import Run, load_recipe
from victorctl.tasks import chosen, open_tasks

QUIET = Run(device="cpu", quiet=True)
FORMS = dict(zip(BENCHMARKS, [*storage.FORMS] * 3, strict=False))  # each form for two at least


def settings(names, **more):
    asked = {"repeats": 0, "batch_size": 4, "max_new_tokens": 3, "benchmarks": names, **more}
    flags = {f"eval.{key}": value for key, value in asked.items()}
    made = {"victor.registers": 3, "victor.drop_layer": 2, "convert.verify": "none"}
    return load_recipe(None, flags={**made, **flags})


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(base_answers, "HF_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_llava(folder / "source")
    run = dataclasses.replace(QUIET, out=folder / "model")
    convert(str(folder / "source"), recipe=settings("gqa"), run=run)
    return folder / "model"


@pytest.fixture
def told(monkeypatch):
    """Let everybody answer what is right, or what a test says instead."""
    instead = {}

    def ask_on(asking, task, asked, notebook):
        right = [question.conversation.answers[0] for question in asked]
        texts = {name: instead.get((name, task), right) for name in asking.contestants}
        return Answers(texts, [Size(16, 4, 1)] * len(asked), [0.0] * len(asked))

    monkeypatch.setattr(Asking, "ask_on", ask_on)
    return instead


def run(model, out, names, **more):
    return evaluate(model, recipe=settings(names, **more), run=dataclasses.replace(QUIET, out=out))


def test_every_benchmark_is_asked_in_one_run(model, tmp_path):
    for name, form in FORMS.items():
        storage.store(name, tmp_path / "data", form)

    found = run(model, tmp_path / "out", "all", data_dir=str(tmp_path / "data"))

    assert list(found["benchmarks"]) == list(found["by_type"]) == list(BENCHMARKS)
    counts = {name: len(storage.rows(name)) for name in BENCHMARKS}
    assert {name: one["questions"] for name, one in found["benchmarks"].items()} == counts
    lines = [*read_lines(tmp_path / "out" / "predictions.jsonl")]
    assert [line["benchmark"] for line in lines] == [n for n in counts for _ in range(counts[n])]
    assert set(lines[0]["right"]) == {"model", "base"}
    for name, one in found["benchmarks"].items():
        kinds = {f"{score.partition('/')[0]}/..." for score in one["metrics"]}
        assert {*one["metrics"], *kinds} >= {one["metric"], *one["meanings"]}, name
        assert one["metrics"][one["metric"]] == one["score"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["benchmarks"]
    assert found["settings"]["command"].startswith(
        "victorctl eval model --data-dir data --benchmarks all --set "
    )


def test_the_mean_is_that_of_shares_of_the_highest_scores(model, tmp_path, told):
    # Of GQA the base knows all and the model nothing; of TextVQA both say what a person did.
    for name in ("gqa", "textvqa"):
        storage.store(name, tmp_path / "data")
    told["model", "gqa"] = ["nothing"] * 3

    found = run(model, tmp_path / "out", "gqa,textvqa", data_dir=str(tmp_path / "data"))

    assert found["accuracy"]["base"] == pytest.approx(found["by_type"]["textvqa"]["base"] / 2 + 0.5)
    assert found["by_type"]["gqa"]["model"] == 0
    assert found["accuracy"]["model"] == found["by_type"]["textvqa"]["model"] / 2
    assert found["kept"] == found["accuracy"]["model"] / found["accuracy"]["base"]
    assert found["questions"] == 6
    assert found["agreement"] == 0.5


def test_points_count_as_a_share_of_the_most_that_can_be_had(model, tmp_path, told):
    # The base knows all of both. Of MME the model says yes to everything: half of the questions and
    # of no picture both, 50 of 200 points in each category; of GQA it knows one of three.
    for name in ("gqa", "mme"):
        storage.store(name, tmp_path / "data")
    told["model", "mme"] = ["yes"] * len(storage.rows("mme"))
    told["model", "gqa"] = [storage.rows("gqa")[0]["answer"], "nothing", "nothing"]

    found = run(model, tmp_path / "out", "mme,gqa", data_dir=str(tmp_path / "data"))

    assert found["benchmarks"]["mme"]["score"] == {"model": 500, "base": 2000}
    assert found["accuracy"] == {"model": pytest.approx((1 / 4 + 1 / 3) / 2), "base": 1}
    assert found["by_type"]["mme"]["kept"] == pytest.approx(1 / 4)
    assert found["by_type"]["mme"]["interval"] is None  # all pictures are alike: none is known
    assert found["benchmarks"]["mme"]["by_type"]["count"]["model"] == pytest.approx(1 / 4)
    assert found["benchmarks"]["mme"]["by_type"]["code_reasoning"]["model"] is None


def test_questions_that_make_no_score_are_refused_before_anything_is_loaded(model, tmp_path):
    cognition = [row for row in storage.rows("mme") if "reasoning" in row["category"]]
    for name, own in (("gqa", None), ("mme", cognition)):
        storage.store(name, tmp_path / "data", own=own)

    with pytest.raises(VictorError, match="MME: 4 questions, and they do not make a score"):
        run(model, tmp_path / "out", "gqa,mme", data_dir=str(tmp_path / "data"))


def test_two_tasks_are_not_drawn_alike(model, tmp_path, told):
    # Two benchmarks of as many pictures, of which the model knows half, each time the other half:
    # drawn alike, their mean would always be one half.
    rows = [
        {**storage.rows("gqa")[0], "id": str(n), "imageId": str(n), "image": "0.png"}
        for n in range(40)
    ]
    storage.store("gqa", tmp_path / "data", own=rows, beside=storage.rows("gqa.beside"))
    (task,) = open_tasks(settings("gqa", data_dir=str(tmp_path / "data")).eval, quiet=True)
    right = rows[0]["answer"]
    texts = [{BASE: [right] * 40, MODEL: [right if n % 2 == odd else "?" for n in range(40)]}
             for odd in (0, 1)]  # fmt: skip
    tasks = [dataclasses.replace(task, name=name) for name in ("one", "other")]

    found = quality([
        Finding(task, Answers(of, [Size(16, 4, 1)] * 40), seed=0)
        for task, of in zip(tasks, texts, strict=True)
    ])  # fmt: skip

    low, high = found["interval"]
    assert 0.3 < low < 0.45  # 1.96 * sqrt(1/4 / 80) = 0.11
    assert 0.55 < high < 0.7


def test_the_papers_benchmarks_are_those_that_need_no_judge():
    assert len(PAPER) == 10
    assert set(PAPER) <= set(BENCHMARKS)
    assert chosen(["paper", "gqa", "chartqa"]) == [*PAPER, "chartqa"]
    assert chosen(["all"]) == list(BENCHMARKS)


def test_answers_are_as_long_as_a_benchmark_lets_them_unless_asked_otherwise(tmp_path):
    storage.store("gqa", tmp_path)
    how = {"data_dir": str(tmp_path)}

    (task,) = open_tasks(settings("gqa", max_new_tokens=None, **how).eval, quiet=True)
    (short,) = open_tasks(settings("gqa", max_new_tokens=2, **how).eval, quiet=True)

    assert task.longest == benchmark("gqa").longest
    assert short.longest == 2


def test_a_copy_that_is_not_there_is_said_before_others_are_read(tmp_path):
    (tmp_path / "gqa.jsonl").write_text("{")  # cannot be read
    asked = settings("gqa,pope,mme", data_dir=str(tmp_path)).eval

    with pytest.raises(VictorError, match="no folder or file called pope, mme"):
        open_tasks(asked, quiet=True)


def test_questions_about_one_stored_picture_share_it(tmp_path):
    storage.store("gqa", tmp_path)

    (task,) = open_tasks(settings("gqa", data_dir=str(tmp_path)).eval, quiet=True)

    # Questions 0 and 2 are about the same picture.
    assert task.questions[0].row is task.questions[2].row is not task.questions[1].row
    assert [one.conversation.id for one in task.questions] == [one.id for one in task.asked]


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        (None, {}, "eval needs questions\n  fix: add --data demo:test, --data FILE, or"),
        (
            "gqa",
            {"data": "demo:test"},
            "--data demo:test --benchmarks gqa: one at a time\n  fix: leave",
        ),
        (",", {}, "--benchmarks names none\n  fix: name some: --benchmarks pope,gqa"),
        (
            None,
            {"data": "demo:test", "data_dir": "x"},
            "--data-dir x: is for benchmarks\n  fix: add --benchmarks pope,gqa, or leave it out",
        ),
        ("gqa, pop", {}, "no benchmark called 'pop'\n  fix: did you mean pope? use one of: ai2d"),
        ("Paper", {}, "no benchmark called 'Paper'\n  fix: did you mean paper? use one of: ai2d"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(model, tmp_path, names, more, said):
    with pytest.raises(VictorError) as refused:
        run(model, tmp_path / "out", names, **more)
    assert str(refused.value).startswith(said)
