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
        people = [_person(one) for one in several(row, "answers")]
        given = vqa.Given.of([words(one, "answer") for one in people], [*map(_note, people)])
        return Asked(
            id=words(row, "question_id"),
            parts=(IMAGE, text(words(row, "question") + vqa.SHORT)),
            images=row["image"],
            answers=vqa.most_common(given.answers),
            unit=identity(row, "image_id"),
            type=str(row.get("answer_type") or "all"),
            known={"given": given},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        given: vqa.Given = asked.known["given"]
        said, *lines = (vqa.level_less(vqa.one_line(one)) for one in (answer, *given.answers))
        right = vqa.credit(said, lines, given.people)
        return {"right": right, "accuracy_official": vqa.official(answer, given)}

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return means(sums, self.main)


def _person(one: Any) -> dict[str, Any]:
    """Check that one person's answer tells of more than its words."""
    if not isinstance(one, dict):
        fix = 'write each answer as {"answer": ..., "answer_id": ...}'
        raise BadRow("form", f"an answer without answer_id: {one!r:.80}", fix=fix)
    return one


def _note(person: Mapping[str, Any]) -> Hashable:
    """Take what is noted of a person beside the answer."""
    return tuple(sorted(cell for cell in person.items() if cell[0] != "answer"))
