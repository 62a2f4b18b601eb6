"""AI2D: questions about the diagrams of schoolbooks, with options."""

import re
from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, text
from victorctl.benchmarks.choices import DIRECTLY, letter_options, name_option
from victorctl.benchmarks.columns import several, words
from victorctl.benchmarks.matching import bare


class AI2D(Benchmark):
    """Questions with four options about diagrams.

    Right is the letter, in any case and with any punctuation, or an answer that begins with the
    letter and a point; what follows such a letter does not matter.

    Source: Kembhavi et al. 2016, arXiv 1603.07396; lmms-eval 0.7.3, tasks/ai2d/ai2d.yaml and
    utils.py, lines 6-79.
    """

    title = "AI2D (test)"
    data = Hub("lmms-lab-encoder/ai2d", None, "test")
    columns = {
        "question": "what is asked",
        "options": "options",
        "answer": "place of the right option, from 0",
        "image": "diagram",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        options = several(row, "options")
        question = f"{words(row, 'question')}\n{letter_options(options)}{DIRECTLY}"
        return Asked(
            id="",
            parts=(IMAGE, text(question)),
            images=row["image"],
            answers=(name_option(row["answer"], options),),
            unit=None,
            type="all",
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        begins = re.match(r"([A-Z])\.", answer)
        said = begins[1] if begins else answer
        return {"right": float(bare(said) == bare(asked.answers[0]))}
