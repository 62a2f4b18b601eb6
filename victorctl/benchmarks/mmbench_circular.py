"""MMBench-EN dev, circular: right only where each rotation of the options is answered right."""

from collections.abc import Mapping, Sequence
from typing import Any

from victorctl.benchmarks.base import Asked
from victorctl.benchmarks.mmbench import MMBench, put


class MMBenchCircular(MMBench):
    """The questions of MMBench-EN dev, each asked as often as it has options.

    This is how MMBench itself is scored, and what lmms-eval's static aggregation gives for the
    whole split. A question counts only if it was asked with its options in their first order.

    Source: Liu et al. 2023, arXiv 2307.06281 (CircularEval; not verified); lmms-eval 0.7.3, as for
    `MMBench`.
    """

    title = "MMBench-EN (dev, circular)"
    whole_units = True
    meanings = {
        "accuracy": "share of questions that are answered right in every order of their options",
        **MMBench.meanings,
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`."""
        return put(row)

    def tally(
        self, marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
    ) -> dict[str, float]:
        """See `Scorer.tally`."""
        hit = {"right": float(all(mark["right"] for mark in marks))}
        first = [one for one in asked if not one.known["rotated"]]
        return super().tally([hit] * len(first), first)
