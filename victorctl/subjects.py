"""What speed is measured of: a folder's model, or one of random weights; and how many prompts."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from victorctl import checkpoint, cost, modeling_victor
from victorctl.contestants import MODEL, load_shipped
from victorctl.errors import VictorError
from victorctl.families import Family, family_of
from victorctl.features import count_visual_tokens, outline
from victorctl.recipe import Recipe, Run
from victorctl.runtime import attention, free_memory, resolve, say
from victorctl.shapes import Shape
from victorctl.timing import LONG
from victorctl.units import size
from victorctl.variants import VICTOR, Variant, check, parse

BATCHES = (16, 8, 4, 2, 1)  # prompts at once: the paper's, or the largest that fits
SPARE = 1.3  # what a prompt takes on a CPU, over what its tensors need by count
USABLE = 0.8  # of the memory that is free: others may want some, too


@dataclass(frozen=True)
class Subject:
    """What is measured, and how.

    Args:
        config: Of the converted model.
        family: Of the model and its base.
        folder: Of the model; None for random weights.
        said: What it is, in words.
        variants: What is compared with the base, by name: `model` first.
        recipe: Section `bench`, and the seed.
        run: Device, number format and attention.
        picture: Size of the pictures, height first, for families that cut them into tiles.
    """

    config: PreTrainedConfig
    family: Family
    folder: Path | None
    said: str
    variants: dict[str, Variant]
    recipe: Recipe
    run: Run
    picture: tuple[int, int]

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return resolve(self.run)[0]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights: as stored, or of random ones what the device is best at."""
        device, dtype = resolve(self.run)
        if dtype != "auto":
            return dtype
        if self.folder is None:
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return self.config.dtype or torch.float32

    @property
    def smaller(self) -> str:
        """How less memory is needed, as an instruction."""
        if self.folder is None:
            return "use a smaller --batch-size, --layers or --width-scale"
        return "use a smaller --batch-size, or --dtype bf16"

    @property
    def layers(self) -> int:
        """Layers of the language model."""
        return self.config.get_text_config().num_hidden_layers

    def check(self, visual: int | None = None) -> None:
        """Refuse what a variant asks for and the model does not have; see `variants.check`."""
        most = self.config.victor["registers"]
        for variant in self.variants.values():
            check(variant, layers=self.layers, registers=most, visual=visual)

    def load(self) -> PreTrainedModel:
        """Load the model, or draw its weights."""
        if self.folder is not None:
            return load_shipped(self.folder, self.run)
        cls = getattr(modeling_victor, self.family.ours)
        how = {"dtype": self.dtype, "attn_implementation": attention(self.run)}
        with torch.device(self.device):
            return cls._from_config(self.config, **how).eval()

    def batches(self) -> list[int]:
        """List how many prompts to try at once, the most first; on a CPU those that should fit.

        Raises:
            VictorError: If not even one should.
        """
        asked = self.recipe.bench.batch_size
        if asked or self.device.type == "cuda":
            return [asked] if asked else [*BATCHES]
        weights, each = self._needed()
        free = int(USABLE * free_memory(self.device))
        fitting = [count for count in BATCHES if weights + count * each <= free]
        if not fitting:
            raise VictorError(
                f"{self.said}: a prompt needs about {size(weights + each)} of memory with the "
                f"model, and {size(free)} can be used of what is free",
                fix=self.smaller,
            )
        return fitting

    def _needed(self) -> tuple[int, int]:
        """Estimate the bytes of the weights, and of what a prompt takes beside them."""
        native = getattr(transformers, self.family.native)
        seen = outline(native, self.config, self.picture)
        shape = replace(cost.shape_of(self.config), value_bytes=self.dtype.itemsize)
        visual = count_visual_tokens(native, self.config, self.picture) or shape.projected
        tokens = visual + self.recipe.bench.text + LONG
        inner = tokens * (3 * shape.mlp + 6 * shape.hidden)
        if shape.tower is not None:
            tower = shape.tower
            inner = max(inner, seen.tiles * tower.patches * (2 * tower.mlp + 6 * tower.width))
        kept = cost.cache_bytes(shape, [tokens] * shape.layers)
        each = SPARE * (kept + inner * shape.value_bytes)
        return seen.parameters * shape.value_bytes, round(each)


def subject(folder: Path | None, recipe: Recipe, run: Run, picture: tuple[int, int]) -> Subject:
    """Say what is measured, from a folder's or a shape's configuration.

    Raises:
        VictorError: If there is not one of the two, or a variant needs more than the model has.
    """
    bench = recipe.bench
    if (folder is None) == (bench.shape is None):
        raise VictorError(
            f"bench takes a model's folder or --shape, and got "
            f"{'neither' if folder is None else 'both'}",
            fix="victorctl bench FOLDER, or victorctl bench --shape llava-1.5-7b",
        )
    sizes = {"--layers": bench.layers, "--width-scale": bench.width_scale}
    given = [name for name, value in sizes.items() if value not in (None, 1.0)]
    if folder is not None and given:
        raise VictorError(
            f"{folder}: {', '.join(given)}: a model in a folder has the sizes that it has",
            fix=f"leave {' and '.join(given)} out, or use --shape",
        )
    made = _of_shape if folder is None else _of_folder
    found = made(folder, recipe, run, picture)
    found.check()
    return found


def _of_folder(folder: Path, recipe: Recipe, run: Run, picture: tuple[int, int]) -> Subject:
    victor = checkpoint.read_victor_config(folder)["victor"]
    config = checkpoint.load_config(folder)
    bench = recipe.bench
    usual = Variant(
        VICTOR, bench.registers or victor["registers"], bench.drop_layer or victor["drop_layer"]
    )
    family = family_of(checkpoint.read_config(folder), folder)
    name = folder.resolve().name
    return Subject(config, family, folder, name, _asked(usual, recipe), recipe, run, picture)


def _of_shape(_folder: None, recipe: Recipe, run: Run, picture: tuple[int, int]) -> Subject:
    bench, victor = recipe.bench, recipe.victor
    shape = Shape.scaled(bench.shape, bench.layers, bench.width_scale)
    if not 0.8 < shape.scale / bench.width_scale < 1.25:
        least = f"--width-scale {shape.scale:.3g}, as widths are multiples of {shape.unit}"
        say(f"warning: --width-scale {bench.width_scale:g} is {least}", quiet=False)
    k = bench.drop_layer or victor.drop_layer or shape.proportional_drop_layer()
    variants = _asked(Variant(VICTOR, bench.registers or victor.registers, k), recipe)
    most = max(each.registers for each in variants.values() if each.method == VICTOR)
    config = shape.config(most, k)
    family = family_of(config.to_dict(), bench.shape)
    return Subject(config, family, None, shape.said(), variants, recipe, run, picture)


def _asked(usual: Variant, recipe: Recipe) -> dict[str, Variant]:
    """Name the model as it is, and what else is asked for, each once."""
    also = (parse(text, usual) for text in recipe.bench.also)
    return {MODEL: usual} | {other.name: other for other in also if other != usual}
