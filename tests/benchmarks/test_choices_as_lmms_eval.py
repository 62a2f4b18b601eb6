"""Questions and scores are those of lmms-eval 0.7.3: yes or no, and options."""

import ast
import random
from types import SimpleNamespace

import pytest

from tests.benchmarks import lmms, wordings
from tests.benchmarks.choice_rows import (
    ai2d_row,
    mmbench_row,
    mme_row,
    mmmu_row,
    pope_row,
    scienceqa_row,
    seed_row,
)
from tests.benchmarks.scoring import right, scores
from victorctl.benchmarks import benchmark
from victorctl.benchmarks.base import Hub
from victorctl.benchmarks.mmmu import DOMAINS

pytestmark = lmms.needed

WORDS = """yes no Yes No NO not none Yes. No, nope y n oyes A B C D E F a b c (A) (B) (C) A. B.
    C. B) C): D: B, :A (A). b. 'B' "C" A.B xA the is answer cat dog bear banana nan so Because = 1 3
    24 1,000 12% 0.5 -2.5 1e5 2.345 2.349 .5 1_000 inf 24.0 $5 1/2 x max
    final result thus É 答:""".split()
PHRASES = [
    "the answer is ",
    "The answer is B.",
    "The correct option is C",
    "I choose ",
    "seven cats",
    "black bear",
    "could be ",
    "it is not, ",
    "so x = ",
]
BETWEEN = [" ", " ", " ", " ", "", ".", ", ", "\n", ". ", ": ", "! ", "? ", "; ", ") ", " (", "\t"]


def predictions(count, seed=0):
    """Yield answers of all kinds, as a task gets them: without spaces around."""
    draw = random.Random(seed)
    for _ in range(count):
        parts = draw.choices([*WORDS, *PHRASES], k=draw.choice([0, 1, 1, 1, 1, 2, 2, 3, 5, 8]))
        said = "".join(part + draw.choice(BETWEEN) for part in parts)
        said = draw.choice([said, said, said, said, wordings.text(draw)])
        yield draw.choice([said, said, said, said.lower(), said.upper()]).strip()


class Picture(str):
    """Stands for a picture that is opened."""

    def convert(self, mode):
        assert mode == "RGB"
        return self


def theirs(row):
    """Give a row as lmms-eval reads it: a picture for a column, or, in SEED-Bench, several."""
    several = "data_type" in row
    return {
        name: [*map(Picture, value)] if several else Picture(value[0])
        for name, value in row.items()
        if isinstance(value, tuple)
    } | {name: value for name, value in row.items() if not isinstance(value, tuple)}


OPEN = {"options": "[]", "question": "How many are in <image 1>?"}
ROWS = {
    "pope": ("pope/pope", [pope_row(), pope_row("no", category="popular")]),
    "mme": ("mme/mme", [mme_row(), mme_row("No"), mme_row(category="OCR")]),
    "scienceqa": ("scienceqa/scienceqa_img", [scienceqa_row(0), scienceqa_row(2, hint="")]),
    "mmbench-circular": (
        "mmbench/mmbench_en_dev_static",
        [
            mmbench_row(),
            mmbench_row("A", index=1_000_241, hint="A zoo."),
            mmbench_row(options=("cat", "dog", "nan", "nan")),
            mmbench_row(options=("cat", "dog", "", None), hint=None),
        ],
    ),
    "seedbench": ("seedbench/seedbench", [seed_row(), seed_row(image=("one", "two"))]),
    "ai2d": ("ai2d/ai2d", [ai2d_row(), ai2d_row("3")]),
    "mmmu": (
        "mmmu/mmmu_val",
        [
            mmmu_row(),
            mmmu_row(question="<image 3> or\n<image 1>?", options="['<image 4>', '\"no\"']"),
            mmmu_row("24", **OPEN),
        ],
    ),
}
ROWS["mmbench"] = (ROWS["mmbench-circular"][0], ROWS["mmbench-circular"][1][:1])


def task_of(name):
    """Return the settings of a task, and its functions by what they are for."""
    path = ROWS[name][0]
    settings = lmms.settings(f"tasks/{path}.yaml")

    def function(purpose):
        file, _, called = settings[purpose].rpartition(".")
        return getattr(lmms.task(f"tasks/{path.partition('/')[0]}/{file}"), called)

    return settings, function


@pytest.mark.parametrize("name", ROWS)
def test_questions_are_put_as_there(name):
    settings, function = task_of(name)
    ours, usual = benchmark(name), settings.get("lmms_eval_specific_kwargs", {}).get("default")

    for row in ROWS[name][1]:
        asked, other = ours.ask(row), theirs(row)
        *pictures, question = asked.parts

        said = function("doc_to_text")(other, *([usual] if usual else []))
        assert question["text"] == said
        assert [part["type"] for part in pictures] == ["image"] * len(asked.images)
        assert list(asked.images) == function("doc_to_visual")(other)


@pytest.mark.parametrize("name", ROWS)
def test_right_answers_are_those_there(name):
    settings, function = task_of(name)
    more = [settings["model_specific_target_kwargs"]["default"]] if name == "ai2d" else []

    for row in ROWS[name][1]:
        target = settings["doc_to_target"]
        truth = function("doc_to_target")(row, *more) if "." in target else row[target]
        plain = truth.lower() if name in ("pope", "mme") else truth
        assert benchmark(name).ask(row).answers == (plain,)


@pytest.mark.parametrize("name", ROWS)
def test_data_and_limits_are_those_there(name):
    settings, ours = task_of(name)[0], benchmark(name)
    limit = settings.get("generation_kwargs", {}).get("max_new_tokens")

    data = Hub(settings["dataset_path"], settings.get("dataset_name"), settings["test_split"])
    assert ours.data == data
    assert ours.longest == (limit or 32)  # where it says none, ours does
    assert set(ours.columns) | set(ours.optional) <= {*ROWS[name][1][0]}


def test_pope():
    module = lmms.task("tasks/pope/utils")
    draw, ours = random.Random(1), benchmark("pope")
    kinds = ["random", "popular", "adversarial"]
    answered = [
        (pope_row(draw.choice(["yes", "no"]), category=draw.choice(kinds)), said)
        for said in [*predictions(2_000), *draw.choices(["yes", "no", "Yes", "No"], k=500)]
    ]

    results = [module.pope_process_results(row, [said]) for row, said in answered]
    found = scores(ours, answered)

    assert [right(ours, *one) for one in answered] == [
        result["pope_accuracy"]["score"] for result in results
    ]
    for score in ("accuracy", "precision", "recall", "f1_score", "yes_ratio"):
        aggregate = getattr(module, f"pope_aggregate_{score}")
        named = score.removesuffix("_score")
        assert found[named] == pytest.approx(aggregate([one[f"pope_{score}"] for one in results]))
    for kind in kinds:
        these = [
            result["pope_f1_score"]
            for (row, _), result in zip(answered, results, strict=True)
            if row["category"] == kind
        ]
        assert found[f"f1/{kind}"] == pytest.approx(module.pope_aggregate_f1_score(these))


def test_mme():
    module = lmms.task("tasks/mme/utils")
    draw, ours = random.Random(1), benchmark("mme")
    kinds = [kind for kinds in module.eval_type_dict.values() for kind in kinds]
    answered = []
    texts = iter([*predictions(2_000), *draw.choices(["Yes", "No", "yes."], k=500)])
    for number, (first, second) in enumerate(zip(texts, texts, strict=True)):
        where = {"picture": str(number), "category": draw.choice(kinds)}
        answered += [(mme_row("Yes", **where), first), (mme_row("No", **where), second)]

    results = [module.mme_process_results(row, [said]) for row, said in answered]
    found = scores(ours, answered)

    marks = [next(iter(result.values()))["score"] for result in results]
    assert [right(ours, *one) for one in answered] == marks
    for group in ("perception", "cognition"):
        key = f"mme_{group}_score"
        theirs = module.mme_aggregate_results([one[key] for one in results if key in one])
        assert found[group] == pytest.approx(theirs)
    for kind in kinds:
        these = [next(iter(one.values())) for one in results]
        only = [one for one in these if one["category"] == kind]
        assert found[f"points/{kind}"] == pytest.approx(module.mme_aggregate_results(only))


def test_scienceqa():
    module, ours = lmms.task("tasks/scienceqa/utils"), benchmark("scienceqa")
    answered = [(scienceqa_row(n % 3), said) for n, said in enumerate(predictions(2_000))]

    marks = [module.sqa_process_results(row, [said])["exact_match"] for row, said in answered]

    assert [right(ours, *one) for one in answered] == marks
    assert scores(ours, answered)["accuracy"] == pytest.approx(sum(marks) / len(marks))


def test_seedbench(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where lmms-eval writes a file
    module, ours = lmms.task("tasks/seedbench/utils"), benchmark("seedbench")
    answered = [(seed_row("ABCD"[n % 4]), said) for n, said in enumerate(predictions(2_000))]

    results = [module.seed_process_result(row, [said])["seed_image"] for row, said in answered]

    marks = [module.seed_aggregation_result([result]) for result in results]
    assert [right(ours, *one) for one in answered] == marks
    aggregate = module.seed_aggregation_result_all(results)
    assert scores(ours, answered)["accuracy"] == pytest.approx(aggregate)


def test_ai2d():
    module, ours = lmms.task("tasks/ai2d/utils"), benchmark("ai2d")
    settings = task_of("ai2d")[0]
    answered = [(ai2d_row(str(n % 4)), said) for n, said in enumerate(predictions(2_000))]
    rows = [row for row, _ in answered]

    filtered = module.MultiChoiceRegexFilter().apply([[said] for _, said in answered], rows)
    exact = lmms.task("api/metrics").exact_match_hf_evaluate
    rule = {
        name: settings["metric_list"][0][name] for name in ("ignore_case", "ignore_punctuation")
    }
    marks = [
        exact([said.strip()], [module.ai2d_doc_to_target(row, "mcq")], **rule)["exact_match"]
        for row, said in zip(rows, filtered, strict=True)
    ]

    assert [right(ours, *one) for one in answered] == marks
    assert scores(ours, answered)["accuracy"] == pytest.approx(sum(marks) / len(marks))


OPTIONS = [
    ("cat", "dog", "black bear", "nan"),
    ("1", "24", "nan", "nan"),
    ("banana", "yes", None, None),
    ("the", "A", "Because", "no"),
]


def mmbench_answers(draw, texts):
    """Rotate questions two to four times; every second one is answered mostly right."""
    abilities = [("ocr", "coarse"), ("image_style", "coarse"), ("celebrity", "fine")]
    index = 0
    while True:
        index += 1
        options, ability = draw.choice(OPTIONS), draw.choice(abilities)
        for turn in range(draw.choice([1, 2, 3])):
            truth = draw.choice("ABCD"[: len(options) - options.count(None)])
            row = mmbench_row(
                truth, index=index + turn * 1_000_000, options=options, ability=ability
            )
            said = next(texts, None)
            if said is None:
                return
            yield row, truth + draw.choice(["", ".", ") x"]) if index % 2 else said


@pytest.mark.parametrize("name", ["mmbench", "mmbench-circular"])
def test_mmbench(name, capsys):
    module, ours = lmms.task("tasks/mmbench/en_utils"), benchmark(name)
    answered = [
        (row, said)
        for row, said in mmbench_answers(random.Random(1), predictions(400))
        if name == "mmbench-circular" or row["index"] < 1_000_000
    ]

    results = [module.mmbench_process_results(row, [said]) for row, said in answered]
    scored = [one["gpt_eval_score"] for one in results]
    with lmms.importing():
        overall, categories, groups = module.mmbench_evaluator.eval_result(scored, "static")

    found = scores(ours, answered)
    assert 0.2 < overall < 0.8
    assert found["accuracy"] == pytest.approx(overall)
    assert len(categories) + len(groups) == 5
    for kind, accuracy in (categories | groups).items():
        assert found[f"accuracy/{kind}"] == pytest.approx(accuracy)


def test_mmbench_s_marks():
    evaluator = lmms.task("tasks/mmbench/en_utils").mmbench_evaluator
    otherwise = lmms.task("tasks/_task_utils/mcq_extract").extract_mcq_answer
    draw, ours = random.Random(2), benchmark("mmbench")
    for said in predictions(2_000):
        row = mmbench_row(draw.choice("AB"), options=draw.choice(OPTIONS))
        options = {one: row[one] for one in "ABCD" if row[one] is not None}
        letter = evaluator.can_infer(said, {**options}) or otherwise(said, sorted(options))
        assert right(ours, row, said) == (letter == row["answer"])


def mmmu_answers():
    subjects = [subject for subjects in DOMAINS.values() for subject in subjects]
    draw = random.Random(1)
    for number, said in enumerate(predictions(2_000)):
        name = f"validation_{draw.choice(subjects)}_{number}"
        if number % 2:
            yield mmmu_row(draw.choice("ABCD"), name=name), said
        else:
            truth = draw.choice(
                ["24", "2.35", "x", "cat", "1000", "Black bear", "0.5", ["1", "yes"]]
            )
            yield mmmu_row(truth, name=name, options="[]"), said


def test_mmmu(monkeypatch, capsys):
    module, ours = lmms.task("tasks/mmmu/utils"), benchmark("mmmu")
    drawn = SimpleNamespace(choice=None)
    parser = module.parse_mmmu_multi_choice_response
    monkeypatch.setitem(parser.__globals__, "random", drawn)
    answered, results = list(mmmu_answers()), []
    for row, said in answered:
        drawn.choice = random.Random(row["id"]).choice
        results.append(module.mmmu_process_results(row, [said])["mmmu_acc"])

    marks = []
    for result in results:
        judged, _ = module.evaluate_mmmu([result])
        marks.append(float(judged[result["id"]] == "Correct"))
    assert [right(ours, *one) for one in answered] == marks

    found, overall = scores(ours, answered), module.mmmu_aggregate_results(results)
    printed = ast.literal_eval(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(overall, abs=1e-5)
    assert len(printed) == 30 + 6 + 1
    del printed["Overall"]
    for kind, values in printed.items():
        named = kind.removeprefix("Overall-")
        assert found[f"accuracy/{named}"] == pytest.approx(values["acc"], abs=1e-5)


def test_mmmu_without_guesses(monkeypatch):
    module, ours = lmms.task("tasks/mmmu/utils"), benchmark("mmmu")
    parser = module.parse_mmmu_multi_choice_response
    monkeypatch.setitem(parser.__globals__, "random", SimpleNamespace(choice=lambda _: None))

    for row, said in mmmu_answers():
        judged, _ = module.evaluate_mmmu([module.mmmu_process_results(row, [said])["mmmu_acc"]])
        mark = ours.mark(said, ours.ask(row))["right_unguessed"]
        assert mark == (judged[row["id"]] == "Correct")
