"""TextVQA: questions about what is written in pictures, each answered by ten people."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks import vqa
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, text
from victorctl.benchmarks.columns import identity, several, words


class TextVQA(Benchmark):
    """Ask as lmms-eval's `textvqa_val`: in small letters, and without the words that were read out.

    lmms-eval says nothing of the length of answers, so its LLaVA may write 1024 tokens. Here it is
    what DocVQA's longest answers get: what people answered is shorter, so a longer one is wrong.

    Source: Singh et al. 2019, arXiv 1904.08920; lmms-eval 0.7.3, tasks/textvqa/textvqa_val.yaml,
    _default_template_textvqa_yaml and utils.py, lines 11-54.
    """

    title = "TextVQA (val)"
    data = Hub("lmms-lab-encoder/textvqa", None, "validation")
    columns = {
        "image": "picture",
        "question": "what is asked",
        "question_id": "its name",
        "answers": "of ten people",
    }
    optional = {"image_id": "tells which questions are about one picture"}
    longest = 32
    meanings = {
        "accuracy": "lmms-eval's `exact_match`, which is TextVQA's own: all answers are levelled; "
        "LLaVA's papers count alike, but put the words that an OCR system read into the question"
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        answers = [str(answer) for answer in several(row, "answers")]
        return Asked(
            id=words(row, "question_id"),
            parts=(IMAGE, text(words(row, "question").capitalize() + vqa.SHORT)),
            images=row["image"],
            answers=vqa.most_common(answers),
            unit=identity(row, "image_id"),
            type="all",
            known={"given": vqa.Given.of(answers, range(len(answers)))},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        given: vqa.Given = asked.known["given"]
        said, *levelled = map(vqa.level, (answer, *given.answers))
        return {"right": vqa.credit(said, levelled, given.people)}
