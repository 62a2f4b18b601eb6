"""VizWiz-VQA: what blind people asked about pictures that they took, answered by ten people."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks import vqa
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, means, text
from victorctl.benchmarks.columns import several, words

POST = f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{vqa.SHORT}"


class VizWiz(Benchmark):
    """Ask as lmms-eval's `vizwiz_vqa_val`, which writes the question in small letters.

    lmms-eval says nothing of the length of answers, so its LLaVA may write 1024 tokens. Here it is
    what DocVQA's longest answers get: what people answered is shorter, so a longer one is wrong.

    Source: Gurari et al. 2018, arXiv 1802.08218; lmms-eval 0.7.3,
    tasks/vizwiz_vqa/vizwiz_vqa_val.yaml, _default_template_vqa_yaml and utils.py, lines 9-54.
    """

    title = "VizWiz-VQA (val)"
    data = Hub("lmms-lab-encoder/VizWiz-VQA", None, "val")
    columns = {
        "image": "picture",
        "question": "what is asked",
        "question_id": "its name",
        "answers": "of ten people",
    }
    optional = {"category": "kind of question"}
    longest = 32
    meanings = {
        "accuracy": "lmms-eval's `exact_match`: all answers are levelled before they are compared",
        "accuracy_official": "by the code of VQA, whose measure VizWiz takes: it levels answers "
        "only where the ten people differ, and case and signs by other rules",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        answers = [str(answer) for answer in several(row, "answers")]
        name = words(row, "question_id")
        return Asked(
            id=name,
            parts=(IMAGE, text(words(row, "question").capitalize() + POST)),
            images=row["image"],
            answers=vqa.most_common(answers),
            unit=name,
            type=str(row.get("category") or "all"),
            known={"given": vqa.Given.of(answers, range(len(answers)))},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        given: vqa.Given = asked.known["given"]
        said, *levelled = map(vqa.level, (answer, *given.answers))
        right = vqa.credit(said, levelled, given.people)
        return {"right": right, "accuracy_official": vqa.official(answer, given)}

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return means(sums, self.main)
