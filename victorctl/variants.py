"""Ways of using one model's weights: unconverted, Victor at any M and k, or another method."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from victorctl import cost, measures
from victorctl.answering import Contestant, by_method
from victorctl.errors import VictorError
from victorctl.methods import made, method
from victorctl.methods.base import Method, Spec

VICTOR = "victor"
SPELLING = re.compile(r"(?:([a-z][\w+-]*)(?::(?=\d)|(?=@|$)))?(\d+)?(?:@(\d+))?")


@dataclass(frozen=True)
class Variant:
    """A method with its two numbers.

    Args:
        method: `victor`, or one of `victorctl.methods`.
        registers: M; of another method, the visual tokens of an image that go on.
        drop_layer: k; where another method acts.
    """

    method: str
    registers: int
    drop_layer: int

    @property
    def name(self) -> str:
        """Spell it as `--also` takes it, with the numbers that it has."""
        counted, layered = _numbers(self.method)
        return self.method + f":{self.registers}" * counted + f"@{self.drop_layer}" * layered

    @property
    def pictures(self) -> bool:
        """Whether prompts have their pictures."""
        return self.method == VICTOR or method(self.method).pictures

    def tokens(self, layers: int, *, visual: int, text: int, tiles: int = 1) -> tuple[int, ...]:
        """Count the tokens of a prompt with one image, of so many tiles, that enter each layer."""
        k, count = self.drop_layer, self.registers
        if self.method == VICTOR:
            return cost.tokens_per_layer(layers, k, visual=visual, registers=count, text=text)
        way = self.way(0)
        parts = tiles if way.sees else 1
        plan = way.plan(Spec(visual // parts, layers))
        return tuple(parts * entering + text for entering in plan)

    def way(self, seed: int) -> Method:
        """Set the method up; one that acts at several layers, or before all, has its own.

        Raises:
            VictorError: If it does not take these numbers.
        """
        try:
            return made(self.method, count=self.registers, layer=self.drop_layer, seed=seed)
        except ValidationError as error:
            first = error.errors()[0]
            raise VictorError(
                f"{self.name}: {first['loc'][0]}: {first['msg'].lower()}",
                fix="choose other numbers: METHOD:TOKENS@LAYER",
            ) from error

    def flops(self, config: PreTrainedConfig, *, visual: int, text: int, tiles: int = 1) -> float:
        """Count the FLOPs of a prompt in the language model, as `cost.prefill_flops` does."""
        shape = cost.shape_of(config)
        tokens = self.tokens(shape.layers, visual=visual, text=text, tiles=tiles)
        flops = cost.prefill_flops(shape, tokens)
        if self.method != VICTOR:
            return flops
        return flops + measures.adapter_flops(shape, config.victor, self.registers)

    def contestant(self, model: PreTrainedModel, seed: int) -> Contestant:
        """Let a model act so.

        Args:
            model: A Victor model.
            seed: Of random choices.
        """
        if self.method != VICTOR:
            return by_method(self.way(seed), model)
        return Contestant(model, partial(self._acting, model))

    @contextmanager
    def _acting(self, model: PreTrainedModel, _rows: Sequence[int]) -> Iterator[None]:
        victor = model.victor
        before = victor.registers.count, victor.drop_layer
        victor.drop_layer = self.drop_layer
        try:
            victor.use(self.registers)
            yield
        finally:
            victor.use(before[0])
            victor.drop_layer = before[1]


def parse(text: str, usual: Variant) -> Variant:
    """Read what `--also` takes: `16@3`, `16`, `@3`, `random`, `random:16`, `random:16@3`.

    Args:
        text: Whatever was typed.
        usual: What it leaves open.

    Raises:
        VictorError: If it is none of these, or no method is called so.
    """
    found = SPELLING.fullmatch(text)
    if not (found and text):
        raise VictorError(
            f"--also {text}: neither numbers nor a method",
            fix="write registers and layer as in 16@3, or a method as in random or pool:16@3",
        )
    name, registers, layer = found.groups()
    counted, layered = _numbers(name or usual.method)  # says which there are
    for given, known, what in ((registers, counted, "count"), (layer, layered, "one layer")):
        if given and not known:
            raise VictorError(
                f"--also {text}: {name} has no {what} to be set", fix=f"leave {given} out"
            )
    return Variant(
        name or usual.method,
        int(registers) if registers else usual.registers,
        int(layer) if layer else usual.drop_layer,
    )


def _numbers(name: str) -> tuple[bool, bool]:
    """Tell whether a method can be told how much goes on, and before which layer it acts."""
    if name == VICTOR:
        return True, True
    cls = method(name)
    return cls.knob is not None, "layer" in cls.model_fields


def check(variant: Variant, *, layers: int, registers: int, visual: int | None) -> None:
    """Refuse numbers that a model does not have.

    Args:
        variant: What is asked for.
        layers: Of the language model.
        registers: That the model has.
        visual: Visual tokens of an image, None where they are not known yet.

    Raises:
        VictorError: If there are fewer of anything.
    """
    name, most = variant.name, layers - 1
    least = int(variant.method == VICTOR)  # other methods may act before the first layer
    if not least <= variant.drop_layer <= most:
        raise VictorError(
            f"{name}: visual tokens cannot leave at layer {variant.drop_layer} of {layers}",
            fix=f"choose {least} to {most}",
        )
    if variant.method == VICTOR and not 1 <= variant.registers <= registers:
        raise VictorError(
            f"{name}: the model has {registers} registers", fix=f"choose 1 to {registers}"
        )
    counts = variant.method == VICTOR or variant.way(0).knob == "count"
    if visual is not None and counts and variant.registers > visual:
        raise VictorError(
            f"{name}: a picture has {visual} visual tokens", fix=f"choose 1 to {visual}"
        )


def native(module: nn.Module) -> nn.Module:
    """Show a Victor model, or a part of it, as its native class, every parameter shared.

    What is learned hooks the layers of both; `unconverted` takes the hooks away.
    """
    cls = getattr(type(module), "native", None)
    if cls is None:
        return module
    view = cls.__new__(cls)
    parts = {name: native(part) for name, part in module._modules.items() if name != VICTOR}
    view.__dict__.update(module.__dict__, _modules=parts)
    return view


def unconverted(model: PreTrainedModel) -> Contestant:
    """Let the native class answer with a Victor model's weights: no code of ours runs."""

    def acting(_rows: Sequence[int]) -> AbstractContextManager[None]:
        return model.registers_off()

    return Contestant(native(model), acting)
