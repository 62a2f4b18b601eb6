"""DocVQA: questions about scanned pages."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks import vqa
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, means, text
from victorctl.benchmarks.columns import identity, joined, several, words
from victorctl.benchmarks.matching import ANLS, anls_marks


class DocVQA(Benchmark):
    """Ask as lmms-eval's `docvqa_val`.

    Source: Mathew et al. 2021, arXiv 2007.00398; lmms-eval 0.7.3, tasks/docvqa/docvqa_val.yaml,
    _default_template_docvqa_yaml and utils.py, lines 8-16; api/metrics.py, lines 276-321.
    """

    title = "DocVQA (val)"
    data = Hub("lmms-lab-encoder/DocVQA", "DocVQA", "validation")
    columns = {
        "image": "picture",
        "question": "what is asked",
        "questionId": "its name",
        "answers": "right answers",
    }
    optional = {
        "ucsf_document_id": "with the next, tells which questions are about one page",
        "ucsf_document_page_no": "its number",
        "question_types": "kinds of question",
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
            unit=identity(row, "ucsf_document_id", "ucsf_document_page_no"),
            type=joined(row, "question_types"),
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        return anls_marks(answer, asked.answers)

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return means(sums, self.main)
