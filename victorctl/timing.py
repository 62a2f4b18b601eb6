"""Speed of several contestants, measured by turns: what slows the machine slows them all."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from victorctl.answering import Contestant, Greedy
from victorctl.questions import Prompts
from victorctl.runtime import progress

SHORT, LONG = 2, 128  # new tokens of a short and of a long answer


class Turn(NamedTuple):
    """What one run took.

    Args:
        seconds: By the clock.
        cpu_seconds: Of all threads of this process together, which other processes change less;
            None where a GPU computes.
    """

    seconds: float
    cpu_seconds: float | None


def by_turns(
    runs: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device,
    done: Callable[[], Any] = lambda: None,
    inside: Callable[[str], AbstractContextManager[Any]] = lambda _name: nullcontext(),
) -> dict[str, list[Turn]]:
    """Time each run again and again, A B A B, after one round that does not count.

    Args:
        runs: What to time.
        repeats: Rounds that count.
        device: Where they compute; on a GPU its own events are the clock.
        done: Called after each.
        inside: Given a run's name, what surrounds it without being timed.

    Returns:
        What every turn of each took, in order.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name, run in runs.items():
            with inside(name):
                turn = _time(run, device)
            done()
            if repeat >= 0:
                turns[name].append(turn)
    return turns


def medians(turns: Mapping[str, Sequence[Turn]]) -> dict[str, float]:
    """Take the median of what each took by the clock."""
    return {name: median(turn.seconds for turn in of) for name, of in turns.items()}


def cpu_medians(turns: Mapping[str, Sequence[Turn]]) -> dict[str, float | None]:
    """Take the median of what each took of the CPUs; None where a GPU computes."""
    spent = {name: [turn.cpu_seconds for turn in of] for name, of in turns.items()}
    return {name: None if None in of else median(of) for name, of in spent.items()}


def _time(run: Callable[[], Any], device: torch.device) -> Turn:
    return (_on_gpu if device.type == "cuda" else _on_cpu)(run, device)


def _on_cpu(run: Callable[[], Any], _device: torch.device) -> Turn:
    start, cpu_start = time.perf_counter(), time.process_time()
    run()  # what has returned is done
    return Turn(time.perf_counter() - start, time.process_time() - cpu_start)


def _on_gpu(run: Callable[[], Any], device: torch.device) -> Turn:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)  # nothing is left over from before
        start.record()
        run()
        end.record()
        end.synchronize()
    return Turn(start.elapsed_time(end) / 1000, None)  # from milliseconds


LENGTHS = {f"generate_{length}": length for length in (SHORT, LONG)}
PREFILL = "prefill"
SPEEDS = (PREFILL, *LENGTHS)  # of several questions at once


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
        **{name: generating(several, length) for name, length in LENGTHS.items()},
    }
    device = next(iter(contestants.values())).model.device
    found = {}
    total = len(timed) * (repeats + 1) * len(contestants)
    with progress("timings", total, quiet=quiet, ticking=False) as bar:
        for name, run in timed.items():
            runs = {other: _bind(run, who) for other, who in contestants.items()}
            done = partial(bar.advance, text=name)
            turns = by_turns(runs, repeats=repeats, device=device, done=done)
            found[name] = medians(turns)
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
    return medians(by_turns(runs, repeats=repeats, device=device))


@torch.inference_mode()
def prefill(who: Contestant, asked: Prompts) -> torch.Tensor:
    """Read prompts and predict the next token of each [b, 1, vocabulary]."""
    with who.acting(asked.rows):
        return who.model(**asked.for_model(who.model), use_cache=True, logits_to_keep=1).logits


def decode_rate(seconds: Mapping[str, float | None], batch: int) -> float | None:
    """Tell how many tokens come each second once the first are there, None where noise hides it.

    Args:
        seconds: Of one contestant, as `speed` names them; None for what was not timed.
        batch: Questions answered at once; their tokens are counted together.
    """
    short, long = (seconds[name] for name in LENGTHS)
    if None in (short, long) or long <= short:
        return None
    return batch * (LONG - SHORT) / (long - short)
