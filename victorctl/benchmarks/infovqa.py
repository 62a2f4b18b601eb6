"""InfographicVQA: questions about infographics."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks import vqa
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, means, text
from victorctl.benchmarks.columns import identity, joined, several, words
from victorctl.benchmarks.matching import ANLS, anls_marks


class InfoVQA(Benchmark):
    """Ask as lmms-eval's `infovqa_val`.

    Source: Mathew et al. 2022, arXiv 2104.12756; lmms-eval 0.7.3, tasks/infovqa/infovqa_val.yaml,
    _default_template_infovqa_yaml and utils.py, lines 8-16; api/metrics.py, lines 276-321.
    """

    title = "InfographicVQA (val)"
    data = Hub("lmms-lab-encoder/DocVQA", "InfographicVQA", "validation")
    columns = {
        "image": "picture",
        "question": "what is asked",
        "questionId": "its name",
        "answers": "right answers",
    }
    optional = {
        "image_url": "tells which questions are about one picture",
        "answer_type": "kinds of answer",
    }
    longest = 32
    main = "anls"
    meanings = ANLS

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        return Asked(
            id=words(row, "questionId"),
            parts=(IMAGE, text(words(row, "question") + vqa.SHORT)),
            images=row["image"],
            answers=tuple(str(answer) for answer in several(row, "answers")),
            unit=identity(row, "image_url"),
            type=joined(row, "answer_type"),
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        return anls_marks(answer, asked.answers)

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return means(sums, self.main)
