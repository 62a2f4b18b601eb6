"""The bench stage: time, memory and FLOPs of a model beside the unconverted one, by turns."""

import gc
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel

from victorctl import cost, peaks
from victorctl.answering import Contestant
from victorctl.contestants import BASE, MODEL
from victorctl.errors import VictorError
from victorctl.features import noise
from victorctl.measures import pair
from victorctl.peaks import Peak
from victorctl.recipe import Recipe, Run
from victorctl.runtime import progress, say, seed_everything, set_threads
from victorctl.speeds import FIRST, Load, against, bounds_of, paired, summarise
from victorctl.subjects import Subject, subject
from victorctl.timing import LENGTHS, LONG, SHORT, Turn, by_turns, medians
from victorctl.trials import Trial, cached_bytes, generate, prefill, trial
from victorctl.variants import unconverted

Found = TypeVar("Found")

PICTURE = 480, 640  # height and width of most pictures in COCO
PRODUCTS = 5  # timings of a matrix product, for each of the recipe's repeats
MEANING = {
    "flops": "of one prompt, by formula: matrix products and attention (all of its square) of the "
    "language model; tower: of vision tower and projector; bound: base over victor",
    "prefill": "the language model reads a batch of prompts, whose pictures were seen before, but "
    "by what acts in the tower",
    FIRST: "one prompt, from its pixels to its first new token",
    "generate": f"a batch, from its pixels to {SHORT} or {LONG} new tokens each",
    "decode_tokens_per_second": "of a batch, between the two",
    "spread": "the fastest and the slowest time",
    "cpu_seconds": "of all threads together; other processes change it less",
    "cache_bytes": "keys and values of one prompt, as the tensors have them",
    "peak_memory_bytes": f"of generate_{SHORT}, weights included; step: without",
    "product_rate": "FLOPs a second of a product with the MLP's matrix and as many rows as a late "
    "layer has tokens, over those of one with as many as the base has",
    "base": "the native class with the same weights",
}


@dataclass(frozen=True)
class Track:
    """Whatever is compared, on the same prompts.

    Args:
        contestants: By name.
        several: A batch of prompts.
        one: One prompt.
    """

    contestants: Mapping[str, Contestant]
    several: Trial
    one: Trial

    @classmethod
    def of(cls, about: Subject, model: PreTrainedModel, batch: int) -> "Track":
        """Set up base, model and variants, all with the model's weights, and draw prompts.

        Raises:
            VictorError: If a picture has fewer visual tokens than something needs.
        """
        seed, text = about.recipe.seed, about.recipe.bench.text
        several, one = (trial(model, count, text, about.picture, seed) for count in (batch, 1))
        about.check(visual=one.visual)
        others = {name: variant.contestant(model, seed) for name, variant in about.variants.items()}
        return cls({BASE: unconverted(model)} | others, several, one)

    def inside(self, name: str) -> AbstractContextManager[None]:
        """Let a contestant act; entering takes time that is not measured."""
        return self.contestants[name].acting(self.several.rows)

    def run(self, name: str, speed: str) -> Callable[[], Any]:
        """Make what is timed."""
        who = self.contestants[name]
        prompts = self._shown(who, self.one if speed == FIRST else self.several)
        if speed == "prefill":
            return partial(prefill, who.model, prompts)
        return partial(generate, who.model, prompts, LENGTHS.get(speed, 1))

    def sees(self, name: str) -> bool:
        """Tell whether a contestant's pictures cannot be seen before its prefill."""
        return self.contestants[name].own_eyes

    def cache_bytes(self, name: str) -> int:
        """Measure a contestant's cache after one prompt."""
        who = self.contestants[name]
        with who.acting(self.one.rows):
            return cached_bytes(prefill(who.model, self._shown(who, self.one)))

    def peak(self, name: str, device: torch.device, imports: int) -> Peak:
        """Measure what a contestant's answers of two tokens take."""
        work = self.run(name, f"generate_{SHORT}")
        with self.inside(name):
            self.run(name, FIRST)()  # what comes once and stays is there now
            return peaks.measure(lambda: work, device, imports=imports)

    @staticmethod
    def _shown(who: Contestant, prompts: Trial) -> Trial:
        prompts = prompts.without_features() if who.own_eyes else prompts
        return prompts if who.pictures else prompts.without_pictures()


class Timed(NamedTuple):
    """What was measured of contestants, by name.

    Args:
        track: They were on.
        turns: Of each, by what was timed.
        memory: Of model and base.
    """

    track: Track
    turns: dict[str, dict[str, list[Turn]]]
    memory: dict[str, Peak]


def bench(
    model: Path | None, *, recipe: Recipe, run: Run, picture: tuple[int, int] = PICTURE
) -> dict[str, Any]:
    """Measure speed, memory and FLOPs of a model, its base and whatever else is asked for.

    Args:
        model: A folder that `convert` or `finetune` wrote; None for the recipe's `bench.shape`.
        recipe: Section `bench`, the seed, and for a shape section `victor`.
        run: On what; for a shape `auto` is float32 on a CPU and bfloat16 on a GPU.
        picture: Height and width of the pictures, for families that cut them into tiles.

    Returns:
        The keys of `bench --json`.

    Raises:
        VictorError: If there is not one of folder and shape, a number is more than the model has,
            or memory is too small.
    """
    set_threads(run.threads)
    about = subject(model, recipe, run, picture)
    sizes, memory = about.batches(), {}
    if about.device.type == "cpu":
        batch, memory = largest(
            sizes, partial(_memory_apart, about), fix=about.smaller, quiet=run.quiet
        )
        sizes = [batch]
    seed_everything(recipe.seed)
    with peaks.fitting("loading the weights", about.smaller):
        network = about.load()
    work = partial(_time, about, network, memory)
    batch, timed = largest(sizes, work, fix=about.smaller, quiet=run.quiet)
    rate = product_rate(about, timed.track, recipe.bench.repeats)
    return _numbers(about, timed) | {"product_rate": rate} | _settings(about, timed)


def largest(
    sizes: Sequence[int], work: Callable[[int], Found], *, fix: str, quiet: bool
) -> tuple[int, Found]:
    """Do some work with as many prompts at once as fit.

    Args:
        sizes: To try, the most first.
        work: Given a size.
        fix: How less is needed.
        quiet: Say nothing of those that do not fit.

    Raises:
        VictorError: If none does.
    """
    for count in sizes:
        try:
            return count, work(count)
        except (BrokenProcessPool, torch.OutOfMemoryError):
            say(f"prompts at once: {count} do not fit into memory", quiet=quiet)
        gc.collect()  # what the error held
        torch.cuda.empty_cache()
    raise VictorError(f"prompts at once: {sizes[-1]} do not fit into memory", fix=fix)


def measure_memory(about: Subject, name: str, batch: int) -> Peak:
    """Measure what one contestant takes, in a process that does nothing else."""
    set_threads(about.run.threads)
    seed_everything(about.recipe.seed)
    peaks.hold_only_what_is_used()
    imports = peaks.taken(about.device)
    return Track.of(about, about.load(), batch).peak(name, about.device, imports)


def _memory_apart(about: Subject, batch: int) -> dict[str, Peak]:
    """Measure memory on a CPU: of base and model, each in a process of its own."""
    found = {}
    with progress("memory", 2, quiet=about.run.quiet) as bar:
        for name in (BASE, MODEL):
            found[name] = peaks.apart(measure_memory, about, name, batch)
            bar.advance(text=name)
    return found


def _time(about: Subject, model: PreTrainedModel, memory: Mapping[str, Peak], batch: int) -> Timed:
    """Time everything on a batch by turns, and on a GPU measure memory."""
    track, bench, device = Track.of(about, model, batch), about.recipe.bench, model.device
    turns: dict[str, dict[str, list[Turn]]] = {name: {} for name in track.contestants}
    total = len(bench.speeds) * (bench.repeats + 1) * len(turns)
    with progress("timings", total, quiet=about.run.quiet, ticking=False) as bar:
        for speed in bench.speeds:
            timed = [name for name in turns if speed != "prefill" or not track.sees(name)]
            runs = {name: track.run(name, speed) for name in timed}
            done = partial(bar.advance, text=speed)
            how = {"repeats": bench.repeats, "device": device, "done": done}
            for name, of in by_turns(runs, inside=track.inside, **how).items():
                turns[name][speed] = of
    if device.type == "cuda":
        memory = {name: track.peak(name, device, imports=0) for name in (BASE, MODEL)}
    return Timed(track, turns, dict(memory))


def product_rate(about: Subject, track: Track, repeats: int) -> dict[str, float]:
    """Compare the rates of matrix products with few rows and with many.

    Returns:
        Rows in a late layer and in the base, and `ratio`: the rate of the one over that of the
        other; less than one where few rows cost more each.
    """
    shape, batch = cost.shape_of(about.config), len(track.several.ids)
    text, visual = track.several.text, track.several.visual
    many = batch * (text + visual)
    few = batch * (text + about.variants[MODEL].registers)
    with torch.device(about.device):
        matrix = torch.empty(shape.mlp, shape.hidden, dtype=about.dtype).normal_(std=0.02)
        rows = torch.empty(many, shape.hidden, dtype=about.dtype).normal_()
    times = max(1, round(many / few))

    @torch.inference_mode()
    def multiply(count: int, often: int) -> None:
        for _ in range(often):
            torch.nn.functional.linear(rows[:count], matrix)

    runs = {"few": partial(multiply, few, times), "many": partial(multiply, many, 1)}
    spent = medians(by_turns(runs, repeats=PRODUCTS * repeats, device=about.device))
    ratio = (few * times / spent["few"]) / (many / spent["many"])
    return {"few_rows": few, "many_rows": many, "ratio": ratio}


def _loads(about: Subject, track: Track) -> dict[str, Load]:
    """Count what a prompt costs each contestant."""
    config, shape = about.config, cost.shape_of(about.config)
    pixels = noise(track.contestants[BASE].model, about.picture, "meta")["pixel_values"]
    tiles = pixels.shape[:-3].numel()
    one = {"visual": track.one.visual, "text": track.one.text}
    tower = tiles * cost.vision_flops(shape)

    def load(name: str, flops: float, seeing: float, tokens: Sequence[int]) -> Load:
        return Load(flops, seeing, track.cache_bytes(name), fmean(tokens) - one["text"])

    whole = (sum(one.values()),) * shape.layers
    found = {BASE: load(BASE, cost.prefill_flops(shape, whole), tower, whole)}
    for name, variant in about.variants.items():
        flops, tokens = (
            variant.flops(config, tiles=tiles, **one),
            variant.tokens(shape.layers, tiles=tiles, **one),
        )
        found[name] = load(name, flops, tower * variant.pictures, tokens)
    return found


def _numbers(about: Subject, timed: Timed) -> dict[str, Any]:
    """Put what was measured and counted beside each other."""
    track, loads = timed.track, _loads(about, timed.track)
    batch = len(track.several.ids)
    found = {name: summarise(of, batch) for name, of in timed.turns.items()}
    ours, base = loads[MODEL], loads[BASE]
    bounds = dict(zip(("bound", "bound_with_tower"), bounds_of(ours, base), strict=True))
    kept = {
        name: {key: getattr(load, key) for key in ("cache_bytes", "mean_visual_tokens")}
        for name, load in loads.items()
    }
    return {
        "flops": {"base": base.flops, "victor": ours.flops, "tower": base.tower, **bounds},
        **paired(found[MODEL], found[BASE]),
        **against(found[MODEL], found[BASE], (ours, base)),
        **paired(kept[MODEL], kept[BASE]),
        **{
            key: pair(*(getattr(timed.memory[who], part) for who in (MODEL, BASE)))
            for key, part in (("peak_memory_bytes", "whole"), ("step_memory_bytes", "step"))
        },
        "variants": [
            {
                "name": name,
                **asdict(about.variants[name]),
                "flops": loads[name].flops,
                **kept[name],
                **found[name],
                **against(found[name], found[BASE], (loads[name], base)),
            }
            for name in about.variants
            if name != MODEL
        ],
    }


def _settings(about: Subject, timed: Timed) -> dict[str, Any]:
    """Say what was measured, and how."""
    device, usual, one = about.device, about.variants[MODEL], timed.track.one
    gpu = device.type == "cuda"
    return {
        "measured": about.said,
        "device": torch.cuda.get_device_name(device) if gpu else str(device),
        "dtype": str(about.dtype).removeprefix("torch."),
        "attention": about.run.attn,
        "threads": torch.get_num_threads(),
        "batch_size": len(timed.track.several.ids),
        "layers": about.layers,
        "hidden_size": about.config.get_text_config().hidden_size,
        "drop_layer": usual.drop_layer,
        "registers": usual.registers,
        "visual_tokens": one.visual,
        "text_tokens": one.text,
        "repeats": about.recipe.bench.repeats,
        "clock": "CUDA events" if gpu else "perf_counter",
        "omissions": list(cost.shape_of(about.config).omissions),
        "meaning": MEANING,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
