"""VQAv2: questions about everyday pictures, each answered by ten people."""

from collections.abc import Hashable, Mapping
from typing import Any

from victorctl.benchmarks import vqa
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, means, text
from victorctl.benchmarks.columns import identity, several, words
from victorctl.data.formats import BadRow


class VQAv2(Benchmark):
    """Ask as lmms-eval's `vqav2_val`; an answer is right that three of the other nine people gave.

    Source: Goyal et al. 2017, arXiv 1612.00837; lmms-eval 0.7.3, tasks/vqav2/vqav2_val.yaml,
    _default_template_vqav2_yaml and utils.py, lines 11-76.
    """

    title = "VQAv2 (val)"
    data = Hub("lmms-lab-encoder/VQAv2", None, "validation")
    columns = {
        "image": "picture",
        "question": "what is asked",
        "question_id": "its name",
        "answers": "of ten people: `answer`, and what else tells two of them apart, as `answer_id`",
    }
    optional = {
        "image_id": "tells which questions are about one picture",
        "answer_type": "kind of question",
    }
    meanings = {
        "accuracy": "lmms-eval's `exact_match`: all answers are levelled before they are compared",
        "accuracy_official": "by VQA's own code, which levels answers only where the ten people "
        "differ; where they agree, a capital letter makes an answer wrong",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        given = [_person(one) for one in several(row, "answers")]
        lines = [(vqa.level_less(vqa.one_line(answer)), other) for answer, other in given]
        return Asked(
            id=words(row, "question_id"),
            parts=(IMAGE, text(words(row, "question") + vqa.SHORT)),
            images=row["image"],
            answers=vqa.most_common([answer for answer, _ in given]),
            unit=identity(row, "image_id"),
            type=str(row.get("answer_type") or "all"),
            known={"worth": vqa.credit(lines), "official": vqa.official(given)},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        right = asked.known["worth"].get(vqa.level_less(vqa.one_line(answer)), 0.0)
        return {"right": right, "accuracy_official": asked.known["official"].mark(answer)}

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return means(sums, self.main)


def _person(one: Any) -> tuple[str, Hashable]:
    """Take one person's answer, and the rest of what is noted of it."""
    if not isinstance(one, dict):
        fix = 'write each answer as {"answer": ..., "answer_id": ...}'
        raise BadRow("form", f"an answer without answer_id: {one!r:.80}", fix=fix)
    rest = {name: cell for name, cell in one.items() if name != "answer"}
    return words(one, "answer"), tuple(sorted(rest.items()))
