"""SEED-Bench, its questions about pictures."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, text
from victorctl.benchmarks.choices import DIRECTLY, check_answer, letter_options
from victorctl.benchmarks.columns import words

TYPES = {
    "1": "Scene Understanding",
    "2": "Instance Identity",
    "3": "Instance Attributes",
    "4": "Instance Location",
    "5": "Instances Counting",
    "6": "Spatial Relation",
    "7": "Instance Interaction",
    "8": "Visual Reasoning",
    "9": "Text Understanding",
}


class SEEDBench(Benchmark):
    """Questions with four options, of nine types; those about videos are left out.

    The score is lmms-eval's `seed_image`. Only the first character of an answer counts, so the
    limit of 32 tokens, where lmms-eval sets none, changes no mark.

    Source: Li et al. 2023, arXiv 2307.16125; lmms-eval 0.7.3, tasks/seedbench/seedbench.yaml and
    utils.py, lines 8-34. The names of the types, and that the data have `data_id` and
    `question_type_id`, are not verified.
    """

    title = "SEED-Bench (images)"
    data = Hub("lmms-lab-encoder/SEED-Bench", None, "test")
    longest = 32
    columns = {
        "question_id": "its name",
        "question": "what is asked",
        "choice_a": "option A",
        "choice_b": "option B",
        "choice_c": "option C",
        "choice_d": "option D",
        "answer": "letter of the right option",
        "image": "the picture, or a video's frames",
        "data_type": "image or video",
    }
    optional = {
        "data_id": "name of the picture",
        "question_type_id": "number of the type of question",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked | None:
        """See `Benchmark.ask`; questions about the same picture are a unit."""
        if row["data_type"] != "image":
            return None
        options = letter_options([words(row, f"choice_{letter}") for letter in "abcd"])
        question = f"{words(row, 'question')}\n{options}{DIRECTLY}"
        return Asked(
            id=words(row, "question_id"),
            parts=(*[IMAGE] * len(row["image"]), text(question)),
            images=row["image"],
            answers=(check_answer(row["answer"], tuple("ABCD")),),
            unit=row.get("data_id") or None,
            type=TYPES.get(str(row.get("question_type_id")), "all"),
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        (truth,) = asked.answers
        return {"right": float(answer[:1].lower() == truth.lower())}
