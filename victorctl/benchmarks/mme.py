"""MME: two questions about each picture, one to be answered yes and one no."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, ratio, text, undefined
from victorctl.benchmarks.choices import check_answer
from victorctl.benchmarks.columns import words
from victorctl.benchmarks.kinds import name_kind, split_kinds, tally_kinds
from victorctl.benchmarks.vqa import SHORT

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
POINTS = 200  # of a category
THEIRS = " Please answer yes or no."
"""What questions of the data end in, and are not asked with."""


class MME(Benchmark):
    """Yes-or-no questions in 14 categories; a category has up to 200 points.

    A category's points are its accuracy over questions and its accuracy over pictures, where a
    picture counts if both of its questions are right, each in per cent. `main` is the sum over the
    ten categories of perception, of 2,000 points. A picture of which only one question was asked is
    left out: lmms-eval stops there. A sum has the categories that were asked, so a part of the data
    gives fewer points; `share` divides by what those categories have.

    Source: Fu et al. 2023, arXiv 2306.13394; lmms-eval 0.7.3, tasks/mme/mme.yaml and utils.py,
    lines 8-122.
    """

    title = "MME"
    data = Hub("lmms-lab-encoder/MME", None, "test")
    columns = {
        "question_id": "name of the picture, within its category",
        "question": "what is asked",
        "answer": "Yes or No",
        "image": "picture",
        "category": "one of 14",
    }
    main = "perception"
    highest = 2000.0
    whole_units = True
    meanings = {
        "perception": "points of ten categories, of 2,000",
        "cognition": "points of the other four, of 800",
        "points/...": "points of a category, of 200: the sum of the two accuracies in per cent",
        "accuracy/...": "share of its questions that are right",
        "accuracy_plus/...": "share of its pictures of which both questions are right",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`; the two questions about a picture are a unit."""
        picture, category = words(row, "question_id"), words(row, "category")
        question = words(row, "question").strip()
        truth = words(row, "answer").lower().strip().replace(".", "")
        return Asked(
            id=f"{picture}: {question}",
            parts=(IMAGE, text(question.replace(THEIRS, "") + SHORT)),
            images=row["image"],
            answers=(check_answer(truth, ("yes", "no")),),
            unit=(category, picture),
            type=category,
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        return {"right": float(_read(answer) in asked.answers)}

    def tally(
        self, marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
    ) -> dict[str, float]:
        """See `Scorer.tally`."""
        return tally_kinds(_tally_picture, marks, asked, lambda one: (one.type,))

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        kinds = split_kinds(sums)
        scores = {
            "perception": _add_up(_list_points(sums, PERCEPTION)),
            "cognition": _add_up(_list_points(sums, COGNITION)),
        }
        for kind, those in kinds.items():
            scores[name_kind("points", kind)] = _points(those)
            scores[name_kind("accuracy", kind)] = ratio(those["right"], 2 * those["pictures"])
            scores[name_kind("accuracy_plus", kind)] = ratio(those["both"], those["pictures"])
        return scores

    def share(self, sums: Mapping[str, Number]) -> Number:
        """See `Scorer.share`; a category without pictures has no points to reach."""
        points = _list_points(sums, PERCEPTION)
        highest = POINTS * np.isfinite(points).sum(axis=0)
        return ratio(np.nansum(points, axis=0), highest)


def _read(answer: str) -> str:
    """Read yes or no out of an answer's first four characters; "other" where neither is there."""
    said = answer.lower().strip().replace(".", "")
    if said in ("y", "n"):
        return {"y": "yes", "n": "no"}[said]
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def _tally_picture(
    marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
) -> dict[str, float]:
    pair = float(len(asked) == 2)
    right = sum(mark["right"] for mark in marks)
    return {"pictures": pair, "right": pair * right, "both": pair * (right == 2)}


def _points(sums: Mapping[str, Number]) -> Number:
    return 100 * ratio(sums["right"] / 2 + sums["both"], sums["pictures"])


def _list_points(sums: Mapping[str, Number], names: Sequence[str]) -> np.ndarray:
    """List the points of categories [categories, ...]; NaN for those without pictures."""
    kinds, none = split_kinds(sums), undefined(sums)
    return np.array([_points(kinds[name]) if name in kinds else none for name in names])


def _add_up(points: np.ndarray) -> Number:
    """Add up the points of those categories that have pictures; NaN where none has."""
    return np.where(np.isnan(points).all(axis=0), np.nan, np.nansum(points, axis=0))
