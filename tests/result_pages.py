"""What docs/results.md and its like show: read from stored measurements."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.measure import name_of, variant_of
from victorctl.units import flops, milliseconds, percent, size, times

DOCS = Path(__file__).parent.parent / "docs"


def join(*parts: str) -> str:
    return "\n\n".join(parts)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def file_of(name: str) -> Path:
    return DOCS / "results" / f"{name}.json"


def stored(name: str) -> dict[str, Any]:
    """Read what `scripts/measure.py` kept of a recipe, or of a study."""
    return json.loads(file_of(name).read_text(encoding="utf-8"))


def lines(file: Path) -> list[dict[str, Any]]:
    """Read what commands printed with `--json`, one after another."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def studies(model: str) -> Iterator[str]:
    """Show what was run of a model's studies."""
    if file_of(f"{model}-positions").exists():
        yield starts(stored(f"{model}-positions")["runs"])
    if file_of(f"{model}-registers-study").exists():
        yield alone(stored(f"{model}-registers-study")["runs"])
    if file_of(f"{model}-ladder").exists():
        yield rungs(model, stored(f"{model}-ladder")["runs"])
    if file_of(f"{model}-elastic").exists():
        tail = file_of(f"{model}-tail")
        ends = stored(tail.stem)["runs"] if tail.exists() else {}
        yield elastic(stored(f"{model}-elastic")["runs"], ends)


def summary(measured: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Show what a model's recipes keep, beside what else could be done, and what it costs."""
    return ladder(measured), rivals(measured["victor"]), costs(measured["victor"])


def grown(base: dict[str, Any]) -> str:
    """Show what the base that is to be converted can do, and what it took to teach it."""
    seen = base["measured"]["accuracy"]["with the picture"]
    blind = base["measured"]["accuracy"]["without"]
    alone = base["projector_alone"]["measured"]["accuracy"]["with the picture"]
    names = sorted(set(seen) - {"all"})
    rows = [
        (name, percent(seen[name]), percent(blind[name]), percent(alone[name]))
        for name in (*names, "all")
    ]
    minutes = sum(phase["minutes"] for phase in base["training"])
    head = ("questions", f"base, {minutes} minutes", "without the picture")
    head += (f"projector alone, {base['projector_alone']['minutes']} minutes",)
    return table(head, rows)


def kinds_of_questions(measured: dict[str, Any]) -> str:
    """Show of each kind of question how many base and model answer."""
    rows = [
        (name, str(found["questions"]), percent(found["base"]), percent(found["model"]))
        for name, found in sorted(measured["eval"]["by_type"].items())
    ]
    return table(("kind of question", "asked", "base", "Victor"), rows)


def foretold(untouched: float, perplexity: dict[str, float]) -> str:
    """Show how well a page of English is foretold on the way from SmolLM2 to a Victor model."""
    steps = {
        "SmolLM2": untouched,
        "base": perplexity["base"],
        "Victor (`register-lora`)": perplexity["model"],
    }
    rows = [(name, f"{value:.6g}") for name, value in steps.items()]
    return table(("a page of English", "perplexity"), rows)


def in_short(measured: dict[str, Any]) -> str:
    found = measured["eval"]
    tokens, right = found["mean_visual_tokens"], found["accuracy"]
    others = max(found["baselines"].values(), key=lambda other: other["accuracy"])
    return (
        f"On the demo, {found['settings']['registers']} registers keep "
        f"**{percent(found['kept'])}** of the base's accuracy ({percent(right['base'])} to "
        f"{percent(right['model'])} on {found['questions']:,} questions; 95 % interval of what is "
        f"kept {interval(found)}) at {tokens['model']:g} instead of {tokens['base']:g} visual "
        f"tokens per layer, the base's weights untouched. The best of the simple alternatives at "
        f"the same layer and count keeps {percent(others['kept'])}."
    )


def interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * low:.1f}\u2013{100 * high:.1f}"


def ladder(measured: dict[str, dict[str, Any]]) -> str:
    head = ("rung", "parameters", "base intact", "right answers", "kept (95 % interval)")
    head += ("agreement", "steps", "minutes")
    rows = [
        (
            f"`{one['finetune']['train']}`",
            f"{one['finetune']['trainable_parameters']:,}",
            "yes" if one["finetune"]["base_intact"] else "no",
            percent(one["eval"]["accuracy"]["model"]),
            f"{percent(one['eval']['kept'])} ({interval(one['eval'])})",
            percent(one["eval"]["agreement"]),
            f"{one['finetune']['steps']:,}",
            f"{one['finetune']['seconds'] / 60:.0f}",
        )
        for one in measured.values()
    ]
    base = measured["victor"]["eval"]["accuracy"]["base"]
    rows.append(("unconverted", "", "", percent(base), "100.0 %", "", "", ""))
    return table(head, rows)


def rivals(measured: dict[str, Any]) -> str:
    found = measured["eval"]
    ours = {"accuracy": found["accuracy"]["model"], "kept": found["kept"]}
    ours["mean_visual_tokens"] = found["mean_visual_tokens"]["model"]
    everyone = {"Victor (`register-lora`)": ours, **found["baselines"]}
    rows = [
        (name, f"{one['mean_visual_tokens']:g}", percent(one["accuracy"]), percent(one["kept"]))
        for name, one in everyone.items()
    ]
    return table(("at the same layer and count", "tokens per layer", "right answers", "kept"), rows)


def costs(measured: dict[str, Any]) -> str:
    found = measured["eval"]
    several = found["settings"]["speed_batch_size"]
    shown = {
        "visual tokens per layer": ("mean_visual_tokens", lambda value: f"{value:g}"),
        "FLOPs of the prompt, language model": ("prefill_flops", flops),
        "FLOPs of the vision tower and projector": ("vision_flops", flops),
        "cache": ("cache_bytes", size),
        "time to first token, one question": ("time_to_first_token", milliseconds),
        f"tokens a second, decoding {several} at once": (
            "decode_tokens_per_second",
            lambda value: f"{value:.0f}",
        ),
    }
    rows = [
        (name, show(found[key]["base"]), show(found[key]["model"]))
        for name, (key, show) in shown.items()
    ]
    faster = ", ".join(f"{key} {times(value)}" for key, value in found["speedup"].items())
    how = found["settings"]
    return (
        f"{table(('cost', 'base', 'Victor'), rows)}\n\nTimes as fast, {how['speed_batch_size']} "
        f"questions at once: {faster}. Device {how['device']}, {how['dtype']}, threads: "
        f"{how['threads']}; base and model in alternation."
    )


def speeds(runs: list[dict[str, Any]]) -> str:
    """Show what `bench` measured: how much of the saved FLOPs is saved in time, and the rest."""
    head = ("layers", "k", "wide", "number format", "threads", "prompts at once", "bound")
    head += ("base", "Victor", "times as fast", "of the bound", "by CPU time", "rate of few rows")
    rows = [
        (
            *_sizes(run),
            times(run["flops"]["bound"]),
            *(f"{1000 * run['seconds']['prefill'][who]:,.0f} ms" for who in ("base", "model")),
            times(run["speedup"]["prefill"]),
            *(f"{run[key]['prefill']:.2f}" for key in ("share_of_bound", "cpu_share_of_bound")),
            f"{run['product_rate']['ratio']:.2f}",
        )
        for run in runs
    ]
    others = ("layers", "k", "wide", "number format", "threads", "prompts at once", "first token")
    others += ("2 tokens", "128 tokens", "decoding", "cache", "memory without weights")
    more = [
        (
            *_sizes(run),
            *(times(run["speedup"][key]) for key in ("time_to_first_token", "generate_2")),
            times(run["speedup"]["generate_128"]),
            times(_quotient(run["decode_tokens_per_second"], ("model", "base"))),
            *(
                percent(_quotient(run[key], ("model", "base")))
                for key in ("cache_bytes", "step_memory_bytes")
            ),
        )
        for run in runs
        if run["speedup"]["generate_128"]
    ]
    first = runs[0]
    ends = (
        "\n\nThe same runs, vision tower included: Victor's times as fast, and its cache and "
        f"memory as shares of the base's:\n\n{table(others, more)}"
    )
    return (
        f"Prefill of {first['visual_tokens']} visual and {first['text_tokens']} other tokens, "
        f"{first['registers']} registers:\n\n{table(head, rows)}{ends if more else ''}"
    )


def _sizes(run: dict[str, Any]) -> tuple[str, ...]:
    keys = ("layers", "drop_layer", "hidden_size", "dtype", "threads", "batch_size")
    return tuple(str(run[key]) for key in keys)


def _quotient(numbers: dict[str, float], names: tuple[str, str]) -> float:
    return numbers[names[0]] / numbers[names[1]]


def training_steps(runs: list[dict[str, Any]]) -> str:
    """Show what an optimiser step takes, in several ways, on several kinds of data."""
    return join(*map(training_step, runs))


def training_step(found: dict[str, Any]) -> str:
    seconds, computed, peaks, above = (
        found[key] for key in ("seconds", "cpu_seconds", "peak_memory_bytes", "step_memory_bytes")
    )

    def memory(values: dict[str, int], name: str) -> tuple[str, str]:
        if name not in values:
            return "", ""
        return size(values[name]), f"{values[name] / values['naive']:.2f}"

    rows = [
        (
            f"`{name}`",
            f"{spent:.2f} s",
            f"{spent / seconds['naive']:.2f}",
            f"{computed[name]:.2f} s",
            f"{computed[name] / computed['naive']:.2f}",
            *memory(peaks, name),
            *memory(above, name),
        )
        for name, spent in seconds.items()
    ]
    head = ("step", "time", "of naive", "CPU time", "of naive")
    head += ("memory", "of naive", "without weights", "of naive")
    before = found["text_before"]
    share = computed["cached_teacher"] / computed["unconverted"]
    return (
        f"An optimiser step of `{found['train']['rung']}`, {found['batch_size']} pictures, "
        f"questions about each: {found['questions']}, {found['visual_tokens']} visual tokens "
        f"between {before} and {found['text_tokens'] - before} tokens of text, "
        f"{found['registers']} registers, visual tokens leave at layer {found['drop_layer']} of "
        f"{found['layers']}, {found['width']} wide, {found['dtype']}, threads: "
        f"{found['threads']}; medians of {found['repeats']}:\n\n"
        f"{table(head, rows)}\n\nThe cached step takes "
        f"{share:.3f} of the CPU time of fine-tuning the unconverted model; the cache has saved "
        f"time from pass {found['cache_pays_after']} over the data on."
    )


def converting(found: dict[str, Any]) -> str:
    """Tell what converting a large checkpoint costs."""
    return (
        f"Converting {size(found['bytes'])} of weights in shards, no model built: "
        f"{found['convert_seconds']:.0f} s, {found['ratio']:.2f} times what copying the files and "
        f"hashing both takes ({found['copy_and_hash_seconds']:.0f} s), and "
        f"{size(found['memory_above_imports'])} of memory above the imports "
        f"(`scripts/speed/converting.py`)."
    )


def starts(runs: list[dict[str, Any]]) -> str:
    """Compare where registers stand and what they are drawn like, seed by seed."""
    kept: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        how = (run["convert"]["positions"], run["convert"]["init"])
        kept.setdefault(how, {})[run["changed"]["seed"]] = run["eval"]["kept"]
    seeds = sorted({seed for by_seed in kept.values() for seed in by_seed})
    rows = [
        (
            *(f"`--positions {positions}`", f"`--init {init}`"),
            *(percent(by_seed[seed]) if seed in by_seed else "" for seed in seeds),
            percent(fmean(by_seed.values())) if len(by_seed) == len(seeds) else "",
        )
        for (positions, init), by_seed in kept.items()
    ]
    head = ("registers stand", "and begin like", *(f"kept, seed {seed}" for seed in seeds), "mean")
    steps, questions = runs[0]["finetune"]["steps"], runs[0]["eval"]["questions"]
    rung = runs[0]["finetune"]["train"]
    return f"After {steps} steps of `{rung}`, on {questions:,} questions:\n\n{table(head, rows)}"


def rungs(model: str, runs: list[dict[str, Any]]) -> str:
    """Show what every rung keeps after equally many steps, and at what price."""
    rows = [
        (
            f"`{variant_of(run['changed'])}`",
            f"{run['finetune']['trainable_parameters']:,}",
            "yes" if run["finetune"]["base_intact"] else "no",
            percent(run["eval"]["accuracy"]["model"]),
            f"{percent(run['eval']['kept'])} ({interval(run['eval'])})",
            f"{run['finetune']['seconds']:.0f} s",
            size(run["finetune"]["peak_memory_bytes"]),
        )
        for run in runs
    ]
    head = ("rung", "parameters", "base intact", "right answers", "kept (95 % interval)")
    head += ("training", "memory of the process")
    steps, asked = runs[0]["finetune"]["steps"], runs[0]["eval"]["questions"]
    picture = f"![What each rung keeps](images/{model}-ladder.png)"
    opening = f"The whole ladder, {steps} steps each with a teacher, on {asked:,} questions:"
    return f"{opening}\n\n{table(head, rows)}\n\n{picture}"


def elastic(runs: list[dict[str, Any]], ends: dict[str, Any]) -> str:
    """Compare one training for any number of registers with one for each.

    Args:
        runs: Of the study.
        ends: By number, what the last of 16 registers keep.
    """
    ways = ("elastic", "cut", "end", "alone")
    kept: dict[int, dict[str, str]] = {
        int(count): {"end": f"{percent(found['kept'])} ({interval(found)})"}
        for count, found in ends.items()
    }
    for run in runs:
        changed, found = run["changed"], f"{percent(run['eval']['kept'])} ({interval(run['eval'])})"
        count = changed.get("eval.registers", changed["victor.registers"])
        way = "elastic" if changed.get("train.elastic") else "cut"
        way = "alone" if "eval.registers" not in changed else way
        kept.setdefault(count, {})[way] = found
        if way == "cut" and count == changed["victor.registers"]:
            kept[count]["alone"] = found
    rows = [(str(count), *(kept[count].get(way, "") for way in ways)) for count in sorted(kept)]
    steps = {bool(run["changed"].get("train.elastic")): run["finetune"]["steps"] for run in runs}
    head = (
        "registers in use",
        f"elastic: one training, {steps[True]:,} steps",
        f"the first of 16, {steps[False]:,} steps",
        f"the last of 16, {steps[False]:,} steps",
        f"trained for that many alone, {steps[False]:,} steps",
    )
    questions = runs[0]["eval"]["questions"]
    return (
        f"Kept (95 % interval) by `register-lora` on {questions:,} questions:\n\n"
        f"{table(head, rows)}"
    )


def alone(runs: list[dict[str, Any]]) -> str:
    """Show what registers alone keep, changed in one way after another."""
    rows = [
        (
            name_of(run["changed"]),
            f"{run['eval']['mean_visual_tokens']['model']:g}",
            f"{run['finetune']['trainable_parameters']:,}",
            f"{run['finetune']['steps']:,}",
            percent(run["eval"]["accuracy"]["model"]),
            f"{percent(run['eval']['kept'])} ({interval(run['eval'])})",
            f"{run['finetune']['seconds'] / 60:.0f}",
        )
        for run in runs
    ]
    head = ("registers alone", "tokens per layer", "parameters", "steps", "right answers")
    head += ("kept (95 % interval)", "minutes")
    picture = "![Accuracy kept against mean visual tokens per layer, registers alone]"
    picture += "(images/registers.png)"
    opening = f"One change at a time, on {runs[0]['eval']['questions']:,} questions:"
    return f"{opening}\n\n{table(head, rows)}\n\n{picture}"


def typed(measured: dict[str, dict[str, Any]]) -> str:
    lines = "\n".join("\n".join(one["commands"]) for one in measured.values())
    return f"```shell\n{lines}\n```"
