"""The stage of `bench train`: what a training step costs, on a model of random weights."""

import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from victorctl import peaks
from victorctl.collation import Batch
from victorctl.conversion import default_drop_layer
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.modeling_victor import VictorLlava
from victorctl.recipe import Recipe, Run
from victorctl.rungs import choose_parameters, make_optimizer
from victorctl.runtime import progress, resolve, seed_everything, set_threads
from victorctl.shapes import LLAVA, SIZES, TEXT, VISUAL, Shape, draw
from victorctl.steps import Trainee, answer_loss, naive_loss
from victorctl.teacher import TeacherCache
from victorctl.timing import by_turns, cpu_medians, medians

Step = Callable[[], None]
STEPS = ("naive", "unconverted", "live_teacher", "cached_teacher")
FILLING = "fill_cache"  # timed beside them: what the cache costs before it saves anything
PICTURES = 16  # in a step, unless said otherwise
SMALLER = "use a smaller --batch-size, --width or --layers"
FINE_TUNING = 2e-5  # learning rate of LLaVA 1.5
MEANING = {
    "naive": "the same step on whole sequences, each question by itself, a gradient at every "
    "position, the teacher read live; pictures are seen once, logits made at answers only",
    "unconverted": "full fine-tuning of language model and projector, the tower frozen, "
    "cross-entropy on the answers; AdamW in the weights' number format",
    "live_teacher": "finetune's step, the teacher read every time",
    "cached_teacher": "finetune's step, the teacher's predictions found on disk",
    FILLING: "finetune's step where nothing is on disk yet, its writing included",
}

ON_CPU = (
    "each step in a process of its own, taken twice; the second's peak (VmHWM, begun anew) less "
    "what the process held once all was imported; step_memory_bytes: less what it held before"
)
ON_GPU = (
    "each step in a process of its own, taken twice; torch.cuda.max_memory_allocated of the "
    "second; step_memory_bytes: less what was allocated before"
)


class Workshop(NamedTuple):
    """What steps are made from, and what is known of it.

    Args:
        recipe: Sections `bench`, `train` and `victor`.
        device: Where to compute.
        dtype: Number format of the weights.
        folder: For what the teacher says.
    """

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    folder: Path

    @property
    def shape(self) -> Shape:
        """Sizes of the model."""
        return Shape(self.recipe.bench.layers or SIZES[LLAVA].layers, self.recipe.bench.width)

    @property
    def pictures(self) -> int:
        """Pictures in a step."""
        return self.recipe.bench.batch_size or PICTURES

    @property
    def config(self) -> LlavaConfig:
        """Configuration of the model, converted or not."""
        return self.shape.config(self.recipe.victor.registers)

    def batch(self) -> Batch:
        """Draw what every step reads."""
        bench = self.recipe.bench
        made = draw(self.config, self.pictures, bench.questions, bench.text_before)
        return made.to(self.device)

    def empty_cache(self) -> TeacherCache:
        """Make a cache that knows nothing yet."""
        return TeacherCache({}, Path(tempfile.mkdtemp(dir=self.folder)))


class Made(NamedTuple):
    """Steps by name, and how many parameters their model has or trains."""

    steps: dict[str, Step]
    parameters: dict[str, int]


def train(*, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Measure a training step of a converted model beside its alternatives.

    Time is taken in this process, by turns; memory of each in a process of its own.

    Args:
        recipe: Sections `bench`, `train` and `victor`, and the seed.
        run: On what; `auto` is float32 on a CPU and bfloat16 on a GPU.

    Returns:
        The keys of `bench train --json`.

    Raises:
        VictorError: If the device, the number format or the threads do not fit, or memory runs
            out.
    """
    set_threads(run.threads)
    repeats = recipe.bench.repeats
    total = len(STEPS) + (len(STEPS) + 1) * (repeats + 1)
    with (
        progress("bench train", total, quiet=run.quiet, ticking=False) as bar,
        _workshop(recipe, run) as shop,
        peaks.fitting("a step", SMALLER),
    ):
        found = {}
        for name in STEPS:
            found[name] = peaks.apart(measure_memory, name, shop, run.threads)
            bar.advance(text=f"memory of {name}")
        made = [make(shop, shop.batch()) for make in (converted, unconverted)]
        turns = by_turns(
            made[0].steps | made[1].steps,
            repeats=repeats,
            device=shop.device,
            done=partial(bar.advance, text="timings"),
        )
    seconds = medians(turns)
    whole = {name: peak.whole for name, peak in found.items()}
    above = {name: peak.step for name, peak in found.items()}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_medians(turns),
        "peak_memory_bytes": whole,
        "step_memory_bytes": above,
        "ratio": ratios(seconds, whole, above),
        "cache_pays_after": pays_after(seconds),
        **_settings(shop, made[0].parameters | made[1].parameters),
    }


def ratios(
    seconds: dict[str, float], peaks: dict[str, int | None], above: dict[str, int | None]
) -> dict[str, float | None]:
    """Compare our steps with the naive one, and with fine-tuning the unconverted model.

    Args:
        seconds: Of each step.
        peaks: Bytes that each takes at its most, weights and optimiser included.
        above: The same without what is there between two steps.
    """

    def of(values: dict[str, Any], name: str, other: str) -> float | None:
        return None if values[name] is None else values[name] / values[other]

    return {
        "live_teacher": of(seconds, "live_teacher", "naive"),
        "cached_teacher": of(seconds, "cached_teacher", "naive"),
        "memory": of(peaks, "cached_teacher", "naive"),
        "of_unconverted": of(seconds, "cached_teacher", "unconverted"),
        "memory_of_step": of(above, "cached_teacher", "naive"),
        "memory_of_unconverted": of(peaks, "cached_teacher", "unconverted"),
    }


def pays_after(seconds: dict[str, float]) -> int | None:
    """Count the passes over the data from which on keeping the teacher's predictions saves time.

    The first pass fills the cache, the others find it full; without it every pass asks the teacher.

    Returns:
        None if it never does.
    """
    saved = seconds["live_teacher"] - seconds["cached_teacher"]
    if saved <= 0:
        return None
    return max(1, 1 + int((seconds[FILLING] - seconds["cached_teacher"]) // saved))


def unconverted(shop: Workshop, batch: Batch) -> Made:
    """Make the step that fine-tunes the unconverted model."""
    native = LlavaForConditionalGeneration(shop.config).to(shop.device, shop.dtype).eval()
    native.model.vision_tower.requires_grad_(False)
    parameters = [value for value in native.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=FINE_TUNING, weight_decay=0.0)
    trainee = Trainee(parameters, optimizer, shop.recipe.train.clip)
    steps = {"unconverted": partial(trainee.step, partial(answer_loss, native, batch))}
    return Made(steps, {"unconverted": _count(parameters)})


def converted(shop: Workshop, batch: Batch) -> Made:
    """Make the steps that train the converted model, all of them one model."""
    settings = shop.recipe.train
    model = VictorLlava(shop.config).to(shop.device, shop.dtype).eval()
    chosen = choose_parameters(model, settings)
    trainee = Trainee([*chosen.values()], make_optimizer(chosen, settings), settings.clip)
    live, known, filling = (Distillation(model, settings) for _ in range(3))
    known.known = shop.empty_cache()

    def remember(distillation: Distillation) -> None:
        trainee.step(lambda: distillation(batch).total)
        distillation.known.flush()  # writes nothing where all was known

    def fill() -> None:
        filling.known = shop.empty_cache()
        remember(filling)

    steps = {
        "naive": partial(trainee.step, partial(naive_loss, model, settings, batch)),
        "live_teacher": partial(trainee.step, lambda: live(batch).total),
        "cached_teacher": partial(remember, known),
        FILLING: fill,
    }
    counts = {"model": _count(model.parameters()), "trained": _count(chosen.values())}
    return Made(steps, counts)


def measure_memory(name: str, shop: Workshop, threads: int | None) -> peaks.Peak:
    """Take a step twice in a process that does nothing else, and measure the second."""
    set_threads(threads)
    seed_everything(shop.recipe.seed)
    peaks.hold_only_what_is_used()
    make = unconverted if name == "unconverted" else converted

    def prepare() -> Step:
        step = make(shop, shop.batch()).steps[name]
        step()  # now the optimiser has its moments, and the cache what the teacher said
        return step

    return peaks.measure(prepare, shop.device, imports=peaks.taken(shop.device))


@contextmanager
def _workshop(recipe: Recipe, run: Run) -> Iterator[Workshop]:
    device, dtype = resolve(run)
    if dtype == "auto":
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype == torch.float16:
        raise VictorError(
            "--dtype fp16: small gradients vanish in float16", fix="use --dtype bf16 or fp32"
        )
    seed_everything(recipe.seed)
    with tempfile.TemporaryDirectory(prefix="victorctl-bench-") as folder:
        yield Workshop(recipe, device, dtype, Path(folder))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(value.numel() for value in parameters)


def _settings(shop: Workshop, parameters: dict[str, int]) -> dict[str, Any]:
    """Say what was measured, and how."""
    recipe, device = shop.recipe, shop.device
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else str(device),
        "dtype": str(shop.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "drop_layer": default_drop_layer(shop.shape.layers),
        "registers": recipe.victor.registers,
        "visual_tokens": VISUAL,
        "text_tokens": TEXT,
        "layers": shop.shape.layers,
        "width": shop.shape.width,
        "batch_size": shop.pictures,
        **recipe.bench.model_dump(include={"questions", "text_before", "repeats"}),
        "train": {
            "rung": recipe.train.rung,
            "layers": recipe.train.layers,
            "rank": recipe.train.rank,
        },
        "parameters": parameters,
        "shape": shop.shape.said(),
        "steps": MEANING,
        "memory": ON_GPU if gpu else ON_CPU,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
