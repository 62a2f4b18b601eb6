"""The table of benchmarks: questions that the field asks, and how it marks the answers."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from victorctl.errors import VictorError

if TYPE_CHECKING:
    from victorctl.benchmarks.base import Benchmark

BENCHMARKS: dict[str, str] = {
    "vqav2": "vqav2:VQAv2",
    "vizwiz": "vizwiz:VizWiz",
    "textvqa": "textvqa:TextVQA",
    "gqa": "gqa:GQA",
    "chartqa": "chartqa:ChartQA",
    "docvqa": "docvqa:DocVQA",
    "infovqa": "infovqa:InfoVQA",
    "pope": "pope:POPE",
    "mme": "mme:MME",
    "scienceqa": "scienceqa:ScienceQA",
    "mmbench": "mmbench:MMBench",
    "mmbench-circular": "mmbench_circular:MMBenchCircular",
    "seedbench": "seedbench:SEEDBench",
    "ai2d": "ai2d:AI2D",
    "mmmu": "mmmu:MMMU",
}
"""What a benchmark is called, and its module here and class."""

PAPER = (
    "vqav2",
    "gqa",
    "scienceqa",
    "textvqa",
    "vizwiz",
    "pope",
    "mme",
    "mmbench-circular",
    "seedbench",
    "mmmu",
)
"""Those of the twelve that the paper averages (Wen et al. 2024) whose answers need no judge."""

SETS: dict[str, tuple[str, ...]] = {"paper": PAPER, "all": tuple(BENCHMARKS)}
"""Names for several."""


def benchmark(name: str) -> "Benchmark":
    """Import a benchmark.

    Raises:
        VictorError: If none is called so.
    """
    if name not in BENCHMARKS:
        known = [*sorted(BENCHMARKS), *SETS]
        near = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        fix = f"{meant}use one of: {', '.join(known)}"
        raise VictorError(f"no benchmark called {name!r}", fix=fix)
    module, _, cls = BENCHMARKS[name].partition(":")
    return getattr(import_module(f"victorctl.benchmarks.{module}"), cls)()
