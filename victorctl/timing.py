"""Speed of several contestants, measured by turns: what slows the machine slows them all."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch

from victorctl.answering import Contestant, Greedy
from victorctl.questions import Prompts
from victorctl.runtime import progress

SHORT, LONG = 2, 128  # new tokens of a short and of a long answer


def by_turns(
    runs: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device,
    done: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Time each run again and again, A B A B, after one round that does not count.

    Args:
        runs: What to time.
        repeats: Rounds that count.
        device: Where they compute; a GPU is waited for before and after each.
        done: Called after each.

    Returns:
        Median seconds of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name, run in runs.items():
            spent = _seconds(run, device)
            done()
            if repeat >= 0:
                seconds[name].append(spent)
    return {name: median(spent) for name, spent in seconds.items()}


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # on a CPU, what has returned is done
        torch.cuda.synchronize(device)


PREFILL = "prefill"
SPEEDS = (PREFILL, f"generate_{SHORT}", f"generate_{LONG}")  # of several questions at once


def speed(  # noqa: PLR0913
    contestants: Mapping[str, Contestant],
    *,
    one: Prompts,
    several: Prompts,
    greedy: Greedy,
    repeats: int,
    quiet: bool,
) -> dict[str, dict[str, float]]:
    """Time the start of an answer and answers of two lengths.

    Args:
        contestants: Who is timed.
        one: One question, for `first_token`: from its tensors to its first new token.
        several: A batch for the others: `prefill`, the prompt alone, and `generate_2` and
            `generate_128`, with exactly so many new tokens. Vision tower and all are included.
        greedy: Generates.
        repeats: Times that each is measured.
        quiet: Show no progress.

    Returns:
        Median seconds by what is timed and by contestant.
    """

    def generating(asked: Prompts, length: int) -> Callable[[Contestant], Any]:
        return lambda who: greedy.generate(
            who, asked.for_model(who.model), asked.rows, most=length, least=length
        )

    timed: dict[str, Callable[[Contestant], Any]] = {
        "first_token": generating(one, 1),
        PREFILL: lambda who: prefill(who, several),
        f"generate_{SHORT}": generating(several, SHORT),
        f"generate_{LONG}": generating(several, LONG),
    }
    device = next(iter(contestants.values())).model.device
    found = {}
    total = len(timed) * (repeats + 1) * len(contestants)
    with progress("timings", total, quiet=quiet, ticking=False) as bar:
        for name, run in timed.items():
            runs = {other: _bind(run, who) for other, who in contestants.items()}
            done = partial(bar.advance, text=name)
            found[name] = by_turns(runs, repeats=repeats, device=device, done=done)
    return found


def _bind(run: Callable[[Contestant], Any], who: Contestant) -> Callable[[], Any]:
    return lambda: run(who)


def prefills(
    contestants: Mapping[str, Contestant], asked: Mapping[bool, Prompts], *, repeats: int
) -> dict[str, float]:
    """Time the prefill of a batch alone.

    Args:
        contestants: Who is timed.
        asked: The batch for those that are shown pictures, and for those that are not.
        repeats: Times that each is measured.

    Returns:
        Median seconds of each.
    """
    device = next(iter(contestants.values())).model.device
    runs = {name: partial(prefill, who, asked[who.pictures]) for name, who in contestants.items()}
    return by_turns(runs, repeats=repeats, device=device)


@torch.inference_mode()
def prefill(who: Contestant, asked: Prompts) -> torch.Tensor:
    """Read prompts and predict the next token of each [b, 1, vocabulary]."""
    with who.acting(asked.rows):
        return who.model(**asked.for_model(who.model), use_cache=True, logits_to_keep=1).logits


def decode_rate(seconds: Mapping[str, float], batch: int) -> float | None:
    """Tell how many tokens come each second once the first are there, None where noise hides it.

    Args:
        seconds: Of one contestant, as `speed` names them.
        batch: Questions answered at once; their tokens are counted together.
    """
    spent = seconds[f"generate_{LONG}"] - seconds[f"generate_{SHORT}"]
    return batch * (LONG - SHORT) / spent if spent > 0 else None
