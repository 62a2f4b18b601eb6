"""Free answers are marked as lmms-eval marks them, quirks and all."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import lmms, wordings
from tests.benchmarks.storage import rows
from victorctl.benchmarks import benchmark, vqa
from victorctl.benchmarks.matching import bare

pytestmark = lmms.needed
CASES = {"vqav2": 500, "vizwiz": 500, "textvqa": 500}
OTHERS, MANY = 2000, 10_000
PICTURE = {"image": (Path("0.png"),)}
TASKS = {
    "vqav2": "tasks/vqav2/vqav2_val.yaml",
    "vizwiz": "tasks/vizwiz_vqa/vizwiz_vqa_val.yaml",
    "textvqa": "tasks/textvqa/textvqa_val.yaml",
    "gqa": "tasks/gqa/gqa.yaml",
    "chartqa": "tasks/chartqa/chartqa.yaml",
    "docvqa": "tasks/docvqa/docvqa_val.yaml",
    "infovqa": "tasks/infovqa/infovqa_val.yaml",
}
NAMES = {  # what lmms-eval calls scores
    "exact_match": "accuracy",
    "anls": "anls",
    "relaxed_overall": "relaxed_accuracy",
    "relaxed_human_split": "relaxed_accuracy_human",
    "relaxed_augmented_split": "relaxed_accuracy_augmented",
}


def people(draw: random.Random, count: int) -> list[str]:
    """Answers of several people who mostly agree, but for the words."""
    known = [wordings.text(draw, 2) for _ in range(draw.choice((1, 1, 2, 3)))]
    alike = draw.random() < 0.5
    chosen = draw.choices(known, weights=range(len(known), 0, -1), k=count)
    return [one if alike else wordings.again(draw, one) for one in chosen]


def drawn(name: str, example: dict[str, Any], draw: random.Random) -> tuple[dict, list[str]]:
    """Draw a row in a benchmark's columns, and its right answers."""
    row = example | {"question": wordings.text(draw, 6)}
    if name in ("gqa", "chartqa"):
        number = str(draw.choice((0, 5, 14, 0.5, -3, 2019)))
        row["answer"] = draw.choice((wordings.text(draw, 2), number, f"{number}%"))
        return row, [row["answer"]]
    right = people(draw, draw.randint(1, 3) if name in ("docvqa", "infovqa") else 10)
    if name != "vqav2":
        return row | {"answers": right}, right
    ids = range(10) if draw.random() < 0.8 else draw.choices((1, 2), k=10)  # some tell nobody apart
    given = [{"answer": one, "answer_id": id_} for one, id_ in zip(right, ids, strict=True)]
    return row | {"answers": given}, right


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_lmms_eval(name):
    compare(name, CASES.get(name, OTHERS))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_more_scores_are_those_of_lmms_eval(name):
    compare(name, MANY)


def compare(name: str, cases: int) -> None:
    draw, found, examples = random.Random(f"{name} {cases}"), benchmark(name), rows(name)
    theirs: dict[str, list[float]] = {}
    marks, asked = [], []
    for _ in range(cases):
        row, right = drawn(name, draw.choice(examples), draw)
        answer = wordings.again(draw, draw.choice([*right, wordings.text(draw)])).strip()
        one = found.ask(row | PICTURE)
        given = lmms.marks(TASKS[name], row, answer)
        marks.append(found.mark(answer, one))
        asked.append(one)
        for metric in {*given} & {*NAMES}:
            theirs.setdefault(NAMES[metric], []).append(float(given[metric]))
        assert marks[-1]["right"] == theirs[found.main][-1], (row, answer)

    scores = found.sum_up(found.tally(marks, asked))
    means = {score: sum(each) / len(each) for score, each in theirs.items()}
    assert {score: scores[score] for score in means} == pytest.approx(means, abs=1e-12)
    assert 0.1 < means[found.main] < 0.9  # the draws tell right from wrong


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_put_as_lmms_eval_puts_them(name):
    found, path = benchmark(name), TASKS[name]
    theirs = lmms.settings(path)
    for row in rows(name):
        one = found.ask(row | PICTURE)
        assert one.parts == ({"type": "image"}, {"type": "text", "text": lmms.prompt(path, row)})
        wanted = row.get(theirs["doc_to_target"])
        if isinstance(wanted, str):
            assert one.answers == (wanted,)
        elif name not in ("vqav2", "vizwiz", "textvqa"):
            assert list(one.answers) == row["answers"]

    assert found.data[0] == theirs["dataset_path"]
    assert found.data[1] == theirs.get("dataset_name")
    assert found.data[2] == theirs["test_split"]
    wanted = theirs["generation_kwargs"].get("max_new_tokens")
    assert found.longest == (wanted or 32)  # where it says none, ours does


def test_answers_are_levelled_as_lmms_eval_levels_them():
    draw, theirs = random.Random(0), processor()
    for _ in range(OTHERS):
        answer = wordings.text(draw, 6)
        assert vqa.level(answer) == theirs(answer)
        signs = theirs.process_punctuation(vqa.one_line(answer))
        assert vqa.level_less(vqa.one_line(answer)) == theirs.process_digit_article(signs)


def test_bare_texts_are_equal_where_lmms_eval_says_so():
    draw, equal = random.Random(1), lmms.task("api/metrics").exact_match_hf_evaluate
    how = {"ignore_case": True, "ignore_punctuation": True}
    texts = ["İ", "i", "İ.", "i\u0307", "", "\0", "a\0.", *(wordings.text(draw) for _ in range(30))]
    for one in texts:
        for other in texts:
            theirs = equal(predictions=[one], references=[other], **how)["exact_match"]
            assert (bare(one) == bare(other)) == theirs, (one, other)


def processor():
    return lmms.task("tasks/_task_utils/vqa_eval_metric").EvalAIAnswerProcessor()


def test_apostrophes_are_missing_in_the_same_words():
    theirs = processor().CONTRACTIONS
    heard = {bare: word for bare, word in theirs.items() if bare != word and bare.islower()}
    assert len(heard) > 100
    assert heard == vqa.CONTRACTIONS
