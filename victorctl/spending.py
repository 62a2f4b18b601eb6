"""What answers cost, and how fast they come, for everybody who takes part in an evaluation."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from victorctl import cost, measures
from victorctl.answering import BASE, MODEL
from victorctl.contestants import Field
from victorctl.findings import Finding, mean_interval, mean_pairs, mean_score
from victorctl.measures import Load, Pair, entering, pair
from victorctl.questions import Prompts, Question, Size, prepare
from victorctl.timing import PREFILL, SPEEDS, decode_rate, prefills, speed


def costs(field: Field, sizes: Sequence[Size]) -> dict[str, Pair]:
    """Count what a question costs on average; a question without pictures costs both the same."""
    shape, victor = cost.shape_of(field.model.config), field.model.config.victor
    other = cost.shape_of(field.base.model.config) if field.base else shape
    k, count = victor["drop_layer"], victor["registers"]
    images = fmean(size.images for size in sizes)
    ours, theirs = (
        measures.spend(of, [Load(entering(of.layers, at, each, own), each.text) for each in sizes])
        for of, at, own in ((shape, k, count), (other, other.layers, 0))
    )
    ours["prefill_flops"] += measures.adapter_flops(shape, victor, count * images)
    for spent, counted in ((ours, shape), (theirs, other)):
        if counted.tower:
            spent["vision_flops"] = images * cost.vision_flops(counted)
    return {key: pair(ours[key], theirs.get(key) if field.base else None) for key in ours}


def speeds(field: Field, asked: Sequence[Question], repeats: int, *, quiet: bool) -> dict[str, Any]:
    """Time model and base by turns, and the ways' prefill; nothing if repeated no times."""
    if repeats == 0:
        return untimed()
    timed = {name: field.contestants[name] for name in (MODEL, BASE) if name in field.contestants}
    several = prepare(asked, field.greedy.processor, pictures=True)
    one = prepare(asked[:1], field.greedy.processor, pictures=True)
    seconds = speed(
        timed, one=one, several=several, greedy=field.greedy, repeats=repeats, quiet=quiet
    )
    rates = {
        name: decode_rate({key: of[name] for key, of in seconds.items()}, len(asked))
        for name in timed
    }
    first = seconds.pop("first_token")
    return {
        "time_to_first_token": pair(first[MODEL], first.get(BASE)),
        "decode_tokens_per_second": pair(rates[MODEL], rates.get(BASE)),
        "speedup": {
            key: of[BASE] / of[MODEL] if BASE in of else None for key, of in seconds.items()
        },
        "batch_seconds": {key: pair(of[MODEL], of.get(BASE)) for key, of in seconds.items()},
        "ways": _ways(field, asked, several, repeats),
    }


def _ways(
    field: Field, asked: Sequence[Question], several: Prompts, repeats: int
) -> dict[str, dict[str, float]]:
    """Time the prefill of the simple ways, by turns with the base."""
    if not field.ways:
        return {}
    blind = prepare(asked, field.greedy.processor, pictures=False)
    seconds = prefills(
        {BASE: field.contestants[BASE]} | {name: field.contestants[name] for name in field.ways},
        {True: several, False: blind},
        repeats=repeats,
    )
    return {name: {PREFILL: seconds[BASE] / seconds[name]} for name in field.ways}


def untimed() -> dict[str, Any]:
    """Leave every speed open."""
    nothing = pair(None, None)
    return {
        "time_to_first_token": nothing,
        "decode_tokens_per_second": nothing,
        "speedup": dict.fromkeys(SPEEDS),
        "batch_seconds": dict.fromkeys(SPEEDS, nothing),
        "ways": {},
    }


def mean_costs(field: Field, findings: Sequence[Finding]) -> dict[str, Pair]:
    """Average over all tasks what a question costs."""
    each = [costs(field, finding.answers.sizes) for finding in findings]
    return {key: mean_pairs([one[key] for one in each]) for key in each[0]}


def baseline(field: Field, name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Sum up one of the simple ways."""
    accuracy = mean_score(findings, name)
    tokens = [fmean(map(fmean, finding.answers.entered[name])) for finding in findings]
    return {
        "accuracy": accuracy[MODEL],
        "kept": measures.share(**accuracy),
        "interval": mean_interval(findings, name),
        "mean_visual_tokens": fmean(tokens),
    }
