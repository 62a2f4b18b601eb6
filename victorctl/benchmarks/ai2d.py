"""AI2D: questions about the diagrams of schoolbooks, with options."""

import re
import string
from collections.abc import Mapping
from typing import Any, ClassVar

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, text
from victorctl.benchmarks.choices import DIRECTLY, letter_options, name_option

PUNCTUATION = str.maketrans("", "", string.punctuation)


class Ai2d(Benchmark):
    """Questions with four options about diagrams.

    Right is the letter, in any case and with any punctuation, or an answer that begins with the
    letter and a point; what follows such a letter does not matter.

    Source: lmms-eval 0.7.3, tasks/ai2d/ai2d.yaml, utils.py lines 6-79, and api/metrics.py lines
    188-220.
    """

    title = "AI2D"
    data = Hub("lmms-lab-encoder/ai2d", None, "test")
    columns: ClassVar = {
        "question": "question",
        "options": "options",
        "answer": "place of the right option, from 0",
        "image": "diagram",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        question = f"{row['question']}\n{letter_options(row['options'])}{DIRECTLY}"
        return Asked(
            id="",
            parts=(IMAGE, text(question)),
            images=row["image"],
            answers=(name_option(row["answer"], row["options"]),),
            unit=None,
            type="all",
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Benchmark.mark`."""
        (truth,) = asked.answers
        begins = re.match(r"([A-Z])\.", answer)
        said = begins[1] if begins else answer.translate(PUNCTUATION)
        return {"right": float(said.lower() == truth.lower())}
