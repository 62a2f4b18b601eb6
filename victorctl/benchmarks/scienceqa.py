"""ScienceQA-IMG: school questions that come with a picture, with options."""

import re
from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, ratio, text
from victorctl.benchmarks.choices import DIRECTLY, letter_options, name_option
from victorctl.benchmarks.columns import several, words

OFFICIAL = "ABCDE"


class ScienceQA(Benchmark):
    """Questions from science lessons of grades 1 to 12.

    Source: Lu et al. 2022, arXiv 2209.09513; lmms-eval 0.7.3, tasks/scienceqa/scienceqa_img.yaml
    and utils.py, lines 1-44; LLaVA, eval/eval_science_qa.py (llava-torch 1.2.2.post1), lines 28-36
    and 65-77. That the data have `subject` is not verified.
    """

    title = "ScienceQA-IMG (test)"
    data = Hub("lmms-lab-encoder/ScienceQA", "ScienceQA-IMG", "test")
    columns = {
        "question": "what is asked",
        "hint": "what is told before it; may be empty",
        "choices": "options",
        "answer": "place of the right option, from 0",
        "image": "picture",
    }
    optional = {"subject": "natural, social or language science"}
    meanings = {
        "accuracy": "the answer is the letter, in any case, or begins with it and a point",
        "accuracy_official": "as LLaVA reads answers: a capital letter alone, before a point and a "
        "space, or in the one place that says The answer is",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked | None:
        """See `Benchmark.ask`; a question without a picture is none of these."""
        if not row["image"]:
            return None
        options = several(row, "choices")
        hint = f"Context: {words(row, 'hint')}\n" if row["hint"] else ""
        question = f"{hint}{words(row, 'question')}\n{letter_options(options)}{DIRECTLY}"
        return Asked(
            id="",
            parts=(IMAGE, text(question)),
            images=row["image"],
            answers=(name_option(row["answer"], options),),
            unit=None,
            type=row.get("subject") or "all",
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        (truth,) = asked.answers
        starts = answer[:1].isupper() and answer[1:2] == "." and answer[0].lower() == truth.lower()
        official = _read_as_llava(answer)
        return {
            "right": float(answer.lower() == truth.lower() or starts),
            "right_official": float(official == truth),
        }

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        official = ratio(sums["right_official"], sums["questions"])
        return {**super().sum_up(sums), "accuracy_official": official}


def _read_as_llava(answer: str) -> str:
    if answer[1:3] in ("", ". ") and answer[:1] in tuple(OFFICIAL):
        return answer[0]
    named = re.findall(r"The answer is ([A-Z]).", answer)
    return named[0] if len(named) == 1 else ""
