"""GQA: questions about what is where in a picture, made from graphs of its scene."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks import vqa
from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Beside, Hub, Number, means, text
from victorctl.benchmarks.columns import struct, words
from victorctl.benchmarks.matching import bare


class GQA(Benchmark):
    """Ask as lmms-eval's `gqa`.

    Source: Hudson and Manning 2019, arXiv 1902.09506; lmms-eval 0.7.3, tasks/gqa/gqa.yaml and
    utils.py; api/metrics.py, lines 188-233; haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py.
    """

    title = "GQA (testdev balanced)"
    data = Hub("lmms-lab-encoder/GQA", "testdev_balanced_instructions", "testdev")
    beside = Beside(
        Hub("lmms-lab-encoder/GQA", "testdev_balanced_images", "testdev"),
        key="imageId", id="id", image="image",
    )  # fmt: skip
    columns = {
        "question": "what is asked",
        "id": "its name",
        "imageId": "name of its picture",
        "answer": "right answer",
    }
    optional = {
        "image": "picture, where it is not stored apart",
        "types": "`structural` is the kind of question",
    }
    meanings = {
        "accuracy": "lmms-eval's `exact_match`: equal but for case and punctuation",
        "accuracy_official": "equal, as GQA's own code demands, once LLaVA's script has written "
        "the answer in small letters and left out full stops at its end",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        picture = words(row, "imageId")
        return Asked(
            id=words(row, "id"),
            parts=(IMAGE, text(words(row, "question") + vqa.SHORT)),
            images=row["image"],
            answers=(words(row, "answer"),),
            unit=picture,
            type=str(struct(row, "types").get("structural") or "all"),
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        (right,) = asked.answers
        return {
            "right": float(bare(answer) == bare(right)),
            "accuracy_official": float(answer.rstrip(".").lower() == right),
        }

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return means(sums, self.main)
