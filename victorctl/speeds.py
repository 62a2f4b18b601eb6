"""What timings say: medians and their spread, rates, speed-ups, and the share of the FLOP bound."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl.measures import pair, share
from victorctl.timing import LENGTHS, SPEEDS, Turn, cpu_medians, decode_rate, medians
from victorctl.units import DASH, flops, milliseconds, number, size, times

FIRST = "time_to_first_token"
BOUNDED = ("prefill", FIRST)  # of what takes the time, FLOPs are counted


class Load(NamedTuple):
    """What one prompt costs by formula, and in the cache.

    Args:
        flops: Of the language model.
        tower: FLOPs of vision tower and projector.
        cache_bytes: Of keys and values, after the prompt.
        mean_visual_tokens: Entering a layer, registers included.
    """

    flops: float
    tower: float
    cache_bytes: int
    mean_visual_tokens: float


def summarise(turns: Mapping[str, Sequence[Turn]], batch: int) -> dict[str, Any]:
    """Sum up the timings of one contestant; None for what was not timed.

    Args:
        turns: By what was timed.
        batch: Prompts at once.

    Returns:
        `seconds` and `time_to_first_token` (medians), `cpu_seconds` and `spread` (fastest and
        slowest) of each, `decode_tokens_per_second` and `throughput`.
    """
    by_clock = medians(turns)
    seconds = {name: by_clock.get(name) for name in SPEEDS}
    return {
        "seconds": seconds,
        FIRST: by_clock.get(FIRST),
        "cpu_seconds": cpu_medians(turns),
        "spread": {
            name: [min(turn.seconds for turn in of), max(turn.seconds for turn in of)]
            for name, of in turns.items()
        },
        "decode_tokens_per_second": decode_rate(seconds, batch),
        "throughput": {
            "prompts_per_second": {name: share(batch, seconds[name]) for name in LENGTHS},
            "tokens_per_second": {
                name: share(batch * length, seconds[name]) for name, length in LENGTHS.items()
            },
        },
    }


def against(
    ours: Mapping[str, Any], base: Mapping[str, Any], loads: tuple[Load, Load]
) -> dict[str, Any]:
    """Compare with the base.

    Args:
        ours: What `summarise` returns.
        base: The same of the base.
        loads: What a prompt costs us, and the base.

    Returns:
        `speedup`, and `share_of_bound`: how much of the FLOPs that are saved is saved in time;
        `cpu_share_of_bound` by `cpu_seconds`.
    """
    bounds = dict(zip(BOUNDED, bounds_of(*loads), strict=True))
    speedup = _divided(
        {FIRST: base[FIRST]} | base["seconds"], {FIRST: ours[FIRST]} | ours["seconds"]
    )
    on_cpu = _divided(base["cpu_seconds"], ours["cpu_seconds"])
    return {
        "speedup": speedup,
        "share_of_bound": {name: share(speedup[name], bounds[name]) for name in BOUNDED},
        "cpu_share_of_bound": {name: share(on_cpu.get(name), bounds[name]) for name in BOUNDED},
    }


def _divided(
    base: Mapping[str, float | None], ours: Mapping[str, float | None]
) -> dict[str, float | None]:
    return {name: share(base[name], ours[name]) for name in ours}


def bounds_of(ours: Load, base: Load) -> tuple[float, float]:
    """Divide the base's FLOPs by ours: of the language model, and with the vision tower."""
    return base.flops / ours.flops, (base.flops + base.tower) / (ours.flops + ours.tower)


def paired(ours: Any, base: Any) -> Any:
    """Put every number of the model beside that of the base."""
    if isinstance(ours, Mapping):
        return {key: paired(value, base[key]) for key, value in ours.items()}
    return pair(ours, base)


def table(result: Mapping[str, Any]) -> RenderableType:
    """Show for the terminal, in 80 columns, what `bench` found.

    Args:
        result: The keys of `victorctl bench --json`.
    """
    opening = (
        f"{result['measured']}; {result['visual_tokens']} visual and {result['text_tokens']} other "
        f"tokens; {result['batch_size']} prompts at once, {result['dtype']} on {result['device']}, "
        f"threads: {result['threads']}, medians of {result['repeats']} by turns"
    )
    rate = result["product_rate"]["ratio"]
    bound = result["flops"]
    closing = (
        f"FLOP bound of the prefill {times(bound['bound'])}, with the vision tower "
        f"{times(bound['bound_with_tower'])}. A matrix product with as many rows as a late layer "
        f"has runs at {rate:.2f} of the rate of one with the base's."
    )
    notes = [Text(note, "dim") for note in result["omissions"]]
    parts = [Text(opening), _costs(result), _speeds(result), Text(closing), *notes]
    return Group(*(part for block in parts for part in (block, "")))


def _everyone(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """List base, model and variants by name, with the same keys each."""
    keys = ("seconds", FIRST, "decode_tokens_per_second", "cache_bytes")
    of = {who: {key: _half(result[key], who) for key in keys} for who in ("base", "model")}
    of["base"] |= {"flops": result["flops"]["base"], "speedup": {}, "share_of_bound": {}}
    of["model"] |= {key: result[key] for key in ("speedup", "share_of_bound")}
    of["model"]["flops"] = result["flops"]["victor"]
    name = f"victor:{result['registers']}@{result['drop_layer']}"
    return {"base": of["base"], name: of["model"]} | {
        one["name"]: one for one in result["variants"]
    }


def _half(pairs: Any, who: str) -> Any:
    if set(pairs) == {"model", "base"}:
        return pairs[who]
    return {key: _half(inner, who) for key, inner in pairs.items()}


def _costs(result: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            flops(one["flops"]),
            size(one["cache_bytes"]),
            milliseconds(one["seconds"]["prefill"]),
            milliseconds(one[FIRST]),
            number(one["decode_tokens_per_second"]),
        )
        for name, one in _everyone(result).items()
    ]
    head = ("", "FLOPs", "cache", "prefill", "first token", "tokens a second")
    return _grid(head, rows)


def _speeds(result: Mapping[str, Any]) -> Table:
    names = ("prefill", FIRST, "generate_2", "generate_128")
    rows = [
        (
            name,
            *(times(one["speedup"].get(key)) for key in names),
            _share(one["share_of_bound"].get("prefill")),
        )
        for name, one in list(_everyone(result).items())[1:]
    ]
    head = ("times as fast", "prefill", "first token", "2 tokens", "128 tokens", "of the bound")
    return _grid(head, rows)


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, title in enumerate(head):
        grid.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    return grid
