"""POPE: is an object in the picture, asked for some that are not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, ratio, text
from victorctl.benchmarks.choices import check_answer
from victorctl.benchmarks.columns import words
from victorctl.benchmarks.kinds import name_kind, split_kinds, tally_kinds
from victorctl.benchmarks.vqa import SHORT


class POPE(Benchmark):
    """Yes-or-no questions about objects, of which every second one is absent.

    `main` is F1, since that is what tables of LLaVA have: lmms-eval's over all questions, and
    LLaVA's the mean of the three categories, each scored by itself (`f1_official_mean`).

    Source: Li et al. 2023, arXiv 2305.10355; lmms-eval 0.7.3, tasks/pope/pope.yaml and utils.py,
    lines 9-84; LLaVA, eval/eval_pope.py (llava-torch 1.2.2.post1), lines 5-80; Liu et al. 2023,
    arXiv 2310.03744 (the three categories in LLaVA-1.5's tables; not verified). That the data have
    `category` and `image_source` is not verified.
    """

    title = "POPE (test)"
    data = Hub("lmms-lab-encoder/POPE", None, "test")
    columns = {
        "question_id": "its number within its category",
        "question": "what is asked",
        "answer": "yes or no",
        "image": "picture",
        "category": "how absent objects were chosen: random, popular or adversarial",
    }
    optional = {"image_source": "name of the picture in COCO"}
    longest = 128
    main = "f1"
    meanings = {
        "accuracy": "an answer other than yes and no is wrong, and in what follows neither",
        "precision": "share of the answers yes that are right",
        "recall": "share of the questions to be answered yes that are, of those with yes or no",
        "f1": "harmonic mean of precision and recall",
        "f1/...": "of one category",
        "yes_ratio": "share of questions whose right answer is yes: lmms-eval's, whatever was said",
        "accuracy_official": "as LLaVA reads answers, like all that follow: no, if a word of the "
        "first sentence is No, not or no; else yes",
        "precision_official": "likewise",
        "recall_official": "likewise",
        "f1_official": "likewise, over all questions",
        "f1_official/...": "likewise, of one category",
        "f1_official_mean": "mean of the three categories, as in LLaVA's tables",
        "yes_ratio_official": "share of answers that are read as yes",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`; questions about a picture are a unit, whatever their category."""
        truth = words(row, "answer").lower().strip()
        return Asked(
            id=f"{words(row, 'category')}-{words(row, 'question_id')}",
            parts=(IMAGE, text(words(row, "question").strip() + SHORT)),
            images=row["image"],
            answers=(check_answer(truth, ("yes", "no")),),
            unit=row.get("image_source") or None,
            type=words(row, "category"),
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        (truth,) = asked.answers
        said = {"": answer.lower().strip(), "_official": _read_as_llava(answer)}
        marks = {"right": float(said[""] == truth), "yes": float(truth == "yes")}
        for reading, word in said.items():
            marks[f"tp{reading}"] = float((word, truth) == ("yes", "yes"))
            marks[f"fp{reading}"] = float((word, truth) == ("yes", "no"))
            marks[f"fn{reading}"] = float((word, truth) == ("no", "yes"))
            marks[f"tn{reading}"] = float((word, truth) == ("no", "no"))
        return marks

    def tally(
        self, marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
    ) -> dict[str, float]:
        """See `Scorer.tally`."""
        return tally_kinds(super().tally, marks, asked, lambda one: (one.type,))

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        kinds = split_kinds(sums)
        scores = {**_rates(sums, ""), "yes_ratio": ratio(sums["yes"], sums["questions"])}
        scores |= {name_kind("f1", kind): _rates(those, "")["f1"] for kind, those in kinds.items()}

        official = {kind: _rates(those, "_official") for kind, those in kinds.items()}
        said_yes = sums["tp_official"] + sums["fp_official"]
        scores |= {f"{name}_official": rate for name, rate in _rates(sums, "_official").items()}
        scores["yes_ratio_official"] = ratio(said_yes, sums["questions"])
        scores |= {name_kind("f1_official", kind): rates["f1"] for kind, rates in official.items()}
        scores["f1_official_mean"] = ratio(
            sum(rates["f1"] for rates in official.values()), len(official)
        )
        return scores


def _read_as_llava(answer: str) -> str:
    sentence = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(sentence) else "yes"


def _rates(sums: Mapping[str, Number], reading: str) -> dict[str, Number]:
    """Compute accuracy, precision, recall and F1 of yes; 0 where nothing was called yes."""
    right, false_yes, false_no, rejected = (
        sums[name + reading] for name in ("tp", "fp", "fn", "tn")
    )
    parts = {
        "accuracy": (right + rejected, sums["questions"]),
        "precision": (right, right + false_yes),
        "recall": (right, right + false_no),
        "f1": (2 * right, 2 * right + false_yes + false_no),
    }
    none = sums["questions"]  # divides zero, unless there are no questions at all
    return {
        name: ratio(part, np.where(np.equal(whole, 0), none, whole))
        for name, (part, whole) in parts.items()
    }
