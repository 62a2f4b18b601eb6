"""The demo: convert, fine-tune and measure the small model that comes along."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from victorctl import recipes
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.finetune import finetune
from victorctl.recipe import Run, load_recipe
from victorctl.runtime import say
from victorctl.sources import DEMO

RECIPE = "demo/quick"
THREADS = 1  # more would wait for each other: the model is small, and another draws the scenes
DEFAULT_OUT = Path("victor-demo")
PARTS = {"converted", "model", "model.training", "eval", "eval.answers"}


@contextmanager
def _left_off(needed: Path, run: Run, *words: str | Path) -> Iterator[None]:
    """Say after Ctrl-C how a stage goes on by hand, if what it needs is there."""
    try:
        yield
    except KeyboardInterrupt:
        if needed.exists():
            say(f"next: {shlex.join(['victorctl', *map(str, words)])}", quiet=run.quiet)
        raise


def demo(*, run: Run, steps: int | None = None) -> dict[str, Any]:
    """Run the three stages one after another, as the commands do, on drawn scenes of emoji.

    Args:
        run: Where and on what; without `out`, a folder `victor-demo` here.
        steps: Training steps, instead of the recipe's.

    Returns:
        The keys of `demo --json`.

    Raises:
        VictorError: If the output folder holds anything but an earlier demo.
    """
    started = time.perf_counter()
    out = run.out or DEFAULT_OUT
    foreign = {path.name for path in out.iterdir()} - PARTS if out.is_dir() else set()
    if foreign or (out.exists() and not out.is_dir()):
        raise VictorError(
            f"{out}: holds more than an earlier demo ({', '.join(sorted(foreign)) or 'a file'})",
            fix="choose another --out",
        )
    recipe = load_recipe(recipes.find(RECIPE), flags={"train.steps": steps})

    def part(name: str) -> Run:
        return Run(
            out=out / name, overwrite=True, quiet=run.quiet,
            device=run.device, dtype=run.dtype, attn=run.attn, threads=run.threads or THREADS,
        )  # fmt: skip

    victor, train = recipe.victor, recipe.train
    say(
        f"1/3 convert: {victor.registers} registers behind the picture's 100 tokens, which leave "
        f"before layer {victor.drop_layer}; the weights are copied byte for byte",
        quiet=run.quiet,
    )
    converted = convert(str(DEMO), recipe=recipe, run=part("converted"))
    say(
        f"2/3 finetune: the model frozen, {train.steps} steps on drawn scenes; the registers learn "
        "to carry what the answers need",
        quiet=run.quiet,
    )
    steps_asked = [] if steps is None else ["--steps", str(steps)]
    with _left_off(out / "model.training", run, "finetune", out / "converted", "--out",
                   out / "model", "--recipe", RECIPE, *steps_asked, "--resume"):  # fmt: skip
        trained = finetune(out / "converted", recipe=recipe, run=part("model"))
    say(
        f"3/3 eval: {recipe.eval.limit} questions about scenes with combinations never trained on, "
        "with and without registers",
        quiet=run.quiet,
    )
    with _left_off(out / "model", run, "eval", out / "model", "--out", out / "eval",
                   "--recipe", RECIPE):  # fmt: skip
        measured = evaluate(out / "model", recipe=recipe, run=part("eval"))
    say(f"the model: {out / 'model'}; the report: {measured['report']}", quiet=run.quiet)
    return {
        "folder": str(out),
        "convert": converted,
        "finetune": trained,
        "eval": measured,
        "seconds": time.perf_counter() - started,
    }
