"""Victor: a LLaVA whose visual tokens leave early, and whose registers carry the image on.

This file is the whole runtime. It lies in every model folder that victorctl writes, byte for byte
as it is in the package, and imports only torch, transformers and safetensors:

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

Without `trust_remote_code` the same folder loads as the unconverted model.

Reading order: `VictorMixin` (what a caller sees), `VictorText` (the layers in two slices), `Tokens`
and the functions after it (who is where), `VictorCache` (two lengths in one cache), `Victor` (the
parameters).

Shapes: b rows, n tokens the caller passes, t tokens in the sequence at hand, d width, r registers.

Source: Wen et al. 2024, arXiv 2410.14072, for registers and the drop; the rest is this project's.
"""

import copy
import functools
import inspect
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 23):
    raise ImportError(
        f"Victor models need transformers 5.23 or newer, and this is {transformers.__version__}."
        "\n  fix: pip install -U 'transformers>=5.23,<6'"
    )

from safetensors.torch import save_file
from transformers import DynamicCache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.output_capturing import maybe_install_capturing_hooks

TEXT, VISUAL, REGISTER = 0, 1, 2
"""Kinds of token in `Tokens.kind`."""

CAPTURED = ("output_hidden_states", "output_attentions", "output_router_logits")
"""What a caller or a configuration may ask the layers to hand out."""

CACHE = "cache" if hasattr(BaseModelOutputWithPast, "cache") else "past_key_values"
"""What this version of transformers calls the cache, in arguments and in outputs."""

VARIANT = "victor"
WEIGHTS = "victor.safetensors"
BASE_WEIGHTS = "model.safetensors"
BASE_INDEX = "model.safetensors.index.json"
INDEX = "model.safetensors.index.victor.json"
PREFIX = "victor."
"""Every Victor parameter's name begins so; every other name is the base model's."""


# ---- The parameters ------------------------------------------------------------------------------


class Registers(nn.Module):
    """The learned registers, one row each, of which the first `count` are in use [r, d]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        self.count = count

    def forward(self, images: int) -> Tensor:
        """Give every image its own copy of the registers [images, r, d]."""
        return self.weight[: self.count].repeat(images, 1, 1)  # no view: sharding may free it


class Gate(threading.local):
    """Where registers stand in the sequence that a layer is reading: flat row indices, or None.

    Every thread has its own, so that several can run one model.
    """

    rows: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Gate, ()  # a copy starts closed


class AtRegisters(nn.Module):
    """Something learned that acts at registers only: no other token's arithmetic changes.

    Args:
        gate: Of the decoder layer that it acts in.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.handle: RemovableHandle | None = None

    def hook(self, module: nn.Module) -> RemovableHandle:
        """Hook to a module."""
        raise NotImplementedError

    def attach(self, module: nn.Module) -> None:
        """Act in a module, once, and nowhere else."""
        self.detach()
        self.handle = self.hook(module)

    def detach(self) -> None:
        """Act nowhere."""
        if self.handle is not None:
            self.handle.remove()


class Offset(AtRegisters):
    """One more learned vector for each register, added to its state before a decoder layer [r, d].

    Source: Liu et al. 2021, arXiv 2110.07602, for prompts in every layer; adding to the state
    instead of replacing it is this project's.
    """

    def __init__(self, layer: nn.Module, count: int, width: int, gate: Gate) -> None:
        super().__init__(gate)
        self.weight = nn.Parameter(torch.empty(count, width))
        self.count = count
        self.attach(layer)

    def forward(self, images: int) -> Tensor:
        """Give every image its own copy of the offsets [images * r, d]."""
        return self.weight[: self.count].repeat(images, 1)

    def hook(self, layer: nn.Module) -> RemovableHandle:
        """Hook to a decoder layer."""
        return layer.register_forward_pre_hook(self.add)

    def add(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Add the offsets to a layer's input, below the drop: there every image has all of r."""
        rows, (hidden, *others) = self.gate.rows, inputs
        if rows is None:
            return None
        offsets = self(len(rows) // self.count).to(hidden)
        flat = hidden.flatten(0, -2)  # not in place: it is the output of the layer before
        return flat.index_add(0, rows.to(hidden.device), offsets).view_as(hidden), *others


class LowRank(AtRegisters):
    """A low-rank update of one Linear.

    Source: Hu et al. 2021, arXiv 2106.09685, for the update; acting at registers alone is this
    project's.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, gate: Gate) -> None:
        super().__init__(gate)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.empty(linear.out_features, rank))
        self.scale = scale
        self.attach(linear)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map register states [rows, in] to their update, not yet scaled [rows, out]."""
        low = functional.linear(inputs, self.down.to(inputs))
        return functional.linear(low, self.up.to(inputs))

    def hook(self, linear: nn.Linear) -> RemovableHandle:
        """Hook to a Linear."""
        return linear.register_forward_hook(self.add)

    def add(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Add the update to a Linear's output at the rows of its layer's gate (a forward hook)."""
        rows = self.gate.rows
        if rows is None:
            return None
        rows = rows.to(output.device)
        update = self(inputs[0].flatten(0, -2).index_select(0, rows))
        flat = output.flatten(0, -2)
        add = flat.index_add if torch.is_grad_enabled() else flat.index_add_  # the output is new
        return add(0, rows, update.to(flat), alpha=self.scale).view_as(output)


class Adapter(nn.Module):
    """The low-rank updates of one decoder layer, one per Linear outside of expert banks."""

    def __init__(self, layer: nn.Module, rank: int, scale: float, gate: Gate) -> None:
        super().__init__()
        linears = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and not {"experts", "router"} & set(name.split("."))
        }
        self.linears = nn.ModuleDict(
            {
                name.replace(".", "-"): LowRank(linear, rank, scale, gate)
                for name, linear in linears.items()
            }
        )


class Victor(nn.Module):
    """Everything that a conversion adds: registers, and what else is learned at them, if any.

    Args:
        settings: The `victor` section of the configuration.
        width: Width of the text model.
        layers: Decoder layers of the text model.
    """

    def __init__(self, settings: dict[str, Any], width: int, layers: nn.ModuleList) -> None:
        super().__init__()
        self.drop_layer: int = settings["drop_layer"]
        self.positions: str = settings["positions"]
        self.enabled = True  # False: the unconverted model
        self.inserting = True  # False: the drop without registers
        self.by_runs: tuple[str, ...] = ()  # modalities whose images are runs of placeholders
        self.reduce = drop_visual  # what happens to the sequence before layer `drop_layer`
        self.registers = Registers(settings["registers"], width)
        self.gates = [Gate() for _ in layers]
        self.offsets = nn.ModuleDict()
        self.adapters = nn.ModuleDict()
        if settings.get("deep"):
            self.deepen(layers)
        if settings.get("adapter"):
            self.adapt(layers, settings["adapter"])

    def use(self, count: int) -> None:
        """Use the first registers alone, which never see those behind them."""
        for part in (self.registers, *self.offsets.values()):
            part.count = count

    def keep(self, count: int) -> None:
        """Forget all registers but the first.

        Raises:
            ValueError: If there are fewer, or they are not in memory.
        """
        weight = self.registers.weight
        if not 1 <= count <= len(weight) or weight.is_meta:
            raise ValueError(
                f"registers={count}: the model has {len(weight)}."
                f"\n  fix: choose 1 to {len(weight)}, and load without offloading"
            )
        for part in (self.registers, *self.offsets.values()):
            part.weight = nn.Parameter(
                part.weight[:count].detach().clone(), part.weight.requires_grad
            )
        self.use(count)

    def deepen(self, layers: nn.ModuleList) -> None:
        """Give the decoder layers below the drop their offsets; the first has the registers."""
        count, width = self.registers.weight.shape
        for index in range(1, self.drop_layer):
            self.offsets[str(index)] = Offset(layers[index], count, width, self.gates[index])

    def adapt(self, layers: nn.ModuleList, adapter: dict[str, Any]) -> None:
        """Give decoder layers their adapters.

        Args:
            layers: Decoder layers of the text model.
            adapter: `rank`, `alpha`, and `layers`: `early` for those below the drop, or `all`.
        """
        count = self.drop_layer if adapter["layers"] == "early" else len(layers)
        scale = adapter["alpha"] / adapter["rank"]
        for index in range(count):
            gate = self.gates[index]
            self.adapters[str(index)] = Adapter(layers[index], adapter["rank"], scale, gate)

    def attach(self, layers: nn.ModuleList) -> None:
        """Hook to the modules that are there now: quantising replaces Linears on load."""
        for learned, module in self._hooked(layers):
            learned.attach(module)

    def detach(self, layers: nn.ModuleList) -> None:
        """Take the hooks away, so that the unconverted model runs as fast as the native class."""
        for learned, _ in self._hooked(layers):
            learned.detach()

    def _hooked(self, layers: nn.ModuleList) -> Iterator[tuple[AtRegisters, nn.Module]]:
        for index, offset in self.offsets.items():
            yield offset, layers[int(index)]
        for index, adapter in self.adapters.items():
            for name, update in adapter.linears.items():
                linear = layers[int(index)].get_submodule(name.replace("-", "."))
                while hasattr(linear, "base_layer"):  # what peft has wrapped, hooks and all
                    linear = linear.base_layer
                yield update, linear

    def open_gates(self, start: int, stop: int, rows: Tensor | None) -> None:
        """Tell layers start..stop-1 which flat rows hold registers, if any."""
        for gate in self.gates[start:stop]:
            gate.rows = rows

    def idle(self, hidden: Tensor) -> Tensor:
        """Let all that is learned act at no token: in a batch without an image.

        So every parameter has a gradient, of zero, and modules are called in the order of any other
        batch: steps on several GPUs, one of which may have an image, need both.

        Args:
            hidden: Input of the first layer; its numbers do not change.
        """
        nowhere = torch.empty(0, dtype=torch.long, device=hidden.device)
        self.open_gates(0, len(self.gates), nowhere)
        return hidden + self.registers(0).sum().to(hidden)

    def keep_gates(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """Make a checkpointing function compute a layer again with the gates as they were.

        By then another batch may have set them.
        """

        def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            before = [gate.rows for gate in self.gates]

            def again(*inputs: Any, **named: Any) -> Any:
                for gate, rows in zip(self.gates, before, strict=True):
                    gate.rows = rows
                return layer(*inputs, **named)

            return checkpoint(again, *args, **kwargs)

        return run


# ---- Who is where --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """What stands at each place of a batch of sequences, all [b, t].

    Args:
        kind: TEXT, VISUAL or REGISTER.
        valid: False for padding.
        position: RoPE position.
        origin: Column among the caller's tokens that this token answers for, -1 for none.
        heir: For an image's last register, the column of the image's last visual token; else -1.
        image: Number in the batch, in reading order, of the image that a visual token or a register
            belongs to; else -1.
    """

    kind: Tensor
    valid: Tensor
    position: Tensor
    origin: Tensor
    heir: Tensor
    image: Tensor

    def take(self, index: Tensor) -> "Tokens":
        """Select columns, row by row; `index` is [b, new t]."""
        return Tokens(*(field.take_along_dim(index, dim=1) for field in vars(self).values()))

    def rows(self) -> Tensor | None:
        """Flat indices of the registers, None if there are none."""
        rows = (self.kind == REGISTER).flatten().nonzero().squeeze(1)
        return rows if len(rows) else None


class Images(NamedTuple):
    """The images that arrive in a call; a video is one, too.

    `visual` [b, n] marks their placeholders. `row` and `column` [images] say where each image ends;
    the registers follow there. A column of -1 means that the image ended just before this call.
    """

    visual: Tensor
    row: Tensor
    column: Tensor

    def numbers(self) -> Tensor:
        """Number, in reading order, of the image that every place belongs to or precedes [b, n]."""
        place = torch.arange(self.visual.numel(), device=self.visual.device)
        ends = self.row * self.visual.shape[1] + self.column
        return torch.searchsorted(ends, place).view_as(self.visual)

    def shortest(self) -> int:
        """Visual tokens of the image that has the fewest."""
        return int(self.numbers()[self.visual].bincount().min())


def find_images(visual: Tensor, ends: Tensor) -> Images:
    """Place images and videos in a batch.

    Args:
        visual: True at their placeholders [b, n].
        ends: Flat index of the last placeholder of each, in any order.
    """
    ends = ends.sort().values
    return Images(visual, ends // visual.shape[1], ends % visual.shape[1])


def ends_by_length(visual: Tensor, lengths: list[int]) -> Tensor:
    """Find where images end among their placeholders [b, n], as flat indices.

    Args:
        visual: True at placeholders [b, n].
        lengths: Visual tokens of each image, in reading order; they tell adjacent images apart.
    """
    last = torch.tensor(lengths, device=visual.device).cumsum(0) - 1
    return visual.flatten().nonzero().squeeze(1)[last]


def ends_of_runs(visual: Tensor) -> Tensor:
    """Find where runs of placeholders end that have nothing between [b, n], as flat indices."""
    ends = visual.clone()
    ends[:, :-1] &= ~visual[:, 1:]
    return ends.flatten().nonzero().squeeze(1)


def lengths_of(features: Iterable[Tensor]) -> list[int]:
    """Count the visual tokens of what a projector has given, each [..., d]."""
    return [feature[..., 0].numel() for feature in features]


def valid_tokens(attention_mask: Tensor | None, hidden: Tensor) -> Tensor:
    """Tell which of the caller's tokens are not padding [b, n]; the mask may cover the past too.

    Raises:
        ValueError: If the mask is not two-dimensional.
    """
    batch, length = hidden.shape[:2]
    if attention_mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    if attention_mask.dim() != 2:
        raise ValueError(
            f"A Victor model needs a mask of two dimensions, got {attention_mask.dim()}."
            "\n  fix: pass the processor's attention_mask"
        )
    return attention_mask[:, -length:].to(hidden.device, torch.bool)


def next_positions(start: Tensor, valid: Tensor) -> Tensor:
    """Count on from each row's next position [b] over its valid tokens [b, t]."""
    return (start[:, None] + valid.long().cumsum(dim=1) - 1).clamp(min=0)


def check_positions(position: Tensor, valid: Tensor, *, packed: bool, consecutive: bool) -> None:
    """Refuse positions that this model cannot honour.

    Args:
        position: What the caller passed [b, n].
        valid: False for padding [b, n].
        packed: A step back would mean packed sequences, there being no mask.
        consecutive: Positions must count up by one, as the text will move.

    Raises:
        ValueError: If they are packed, or not consecutive where they must be.
    """
    if position.shape[1] == 1:
        return
    step = position.diff(dim=1)
    inside = valid[:, 1:] & valid[:, :-1]
    if packed and bool((step <= 0).any()):
        raise ValueError(
            "A Victor model does not take packed sequences (position_ids that start again)."
            "\n  fix: pad instead of packing, and pass attention_mask"
        )
    if consecutive and bool(((step != 1) & inside).any()):
        raise ValueError(
            "Under positions: append the model numbers the tokens itself, and these position_ids "
            "have gaps."
            "\n  fix: leave position_ids out, or convert with --positions overlay"
        )


def caller_tokens(valid: Tensor, position: Tensor, images: Images | None) -> Tokens:
    """Describe the caller's own tokens, registers not yet among them."""
    column = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    nobody = torch.full_like(column, -1)
    kind, image = torch.zeros_like(column), nobody
    if images is not None:
        kind = images.visual.long()
        image = torch.where(images.visual, images.numbers(), nobody)
    return Tokens(kind, valid, position, torch.where(valid, column, nobody), nobody, image)


def take_places(states: Tensor, index: Tensor) -> Tensor:
    """Select places of every row: states [b, t, d] and index [b, n] give [b, n, d].

    For the backward pass it remembers one number for each place, not one for each value.
    """
    rows = torch.arange(len(index), device=index.device)[:, None] * states.shape[1]
    taken = states.flatten(0, 1).index_select(0, (rows + index).flatten())
    return taken.view(*index.shape, states.shape[-1])


def insert_registers(
    hidden: Tensor, tokens: Tokens, images: Images, registers: Tensor, first: Tensor
) -> tuple[Tensor, Tokens]:
    """Put every image's registers right after its last visual token.

    Rows with fewer images than the fullest row are filled with padding on the left.

    Args:
        hidden: Embeddings of the caller's tokens [b, n, d].
        tokens: Their description.
        images: Where the images end.
        registers: One copy for each image [images, r, d].
        first: Position of each image's first register [images].

    Returns:
        Embeddings [b, n + r * most images in a row, d] and their description.
    """
    batch, length, width = hidden.shape
    count, each = registers.shape[:2]
    before = torch.arange(count, device=hidden.device)
    slot = before - torch.searchsorted(images.row, images.row)  # the image's number within its row
    slots = int(slot.max()) + 1
    target = (images.row * slots + slot)[:, None] * each + before.new_tensor(
        range(each)
    )  # [images, r]

    def place(values: Tensor, fill: float) -> Tensor:
        """Lay values [images * r, ...] out as [b, slots * r, ...]."""
        out = values.new_full((batch * slots * each, *values.shape[1:]), fill)
        return out.index_copy(0, target.flatten(), values).unflatten(0, (batch, slots * each))

    offset = torch.arange(each, device=hidden.device).expand(count, -1)
    nobody = offset.new_full((count * each,), -1)
    heir = torch.where(offset == each - 1, images.column[:, None], -1).flatten()
    real = place(torch.ones_like(nobody), 0).bool()
    added = Tokens(
        kind=torch.where(real, REGISTER, TEXT),
        valid=real,
        position=place((first[:, None] + offset).flatten(), 0),
        origin=place(nobody, -1),
        heir=place(heir, -1),
        image=place(before.repeat_interleave(each), -1),
    )
    after = place(images.column.repeat_interleave(each), -2)  # padding sorts before everything
    own = torch.arange(length, device=hidden.device).expand(batch, -1)
    order = torch.cat([own, after], dim=1).argsort(dim=1, stable=True)
    hidden = torch.cat([hidden, place(registers.reshape(-1, width).to(hidden.dtype), 0)], dim=1)
    joined = Tokens(
        *(
            torch.cat(pair, dim=1)
            for pair in zip(vars(tokens).values(), vars(added).values(), strict=True)
        )
    )
    return take_places(hidden, order), joined.take(order)


def keep(hidden: Tensor, tokens: Tokens, kept: Tensor) -> tuple[Tensor, Tokens]:
    """Gather the kept tokens of every row, in order, padded on the left to the fullest row.

    Args:
        hidden: States [b, t, d].
        tokens: Their description.
        kept: True where a token stays [b, t]; padding never stays.

    Returns:
        States [b, most kept in a row, d] and their description.
    """
    kept = kept & tokens.valid
    longest = int(kept.sum(dim=1).max())
    index = kept.int().argsort(dim=1, stable=True)[:, kept.shape[1] - longest :]
    stays = kept.take_along_dim(index, dim=1)
    tokens = tokens.take(index)
    tokens = replace(tokens, valid=stays, origin=torch.where(stays, tokens.origin, -1))
    return take_places(hidden, index), tokens


def drop_visual(hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
    """Drop every visual token; the last register of an image answers at the image's last column."""
    hidden, tokens = keep(hidden, tokens, tokens.kind != VISUAL)
    return hidden, replace(tokens, origin=torch.where(tokens.heir >= 0, tokens.heir, tokens.origin))


def scatter(hidden: Tensor, tokens: Tokens, length: int) -> Tensor:
    """Lay states [b, t, d] back onto the caller's columns [b, length, d]; elsewhere zeros."""
    batch, _, width = hidden.shape
    column = torch.where(tokens.valid & (tokens.origin >= 0), tokens.origin, length)
    out = hidden.new_zeros(batch, length + 1, width)
    index = column.to(hidden.device)[..., None].expand(-1, -1, width)
    return out.scatter(1, index, hidden)[:, :length]


def chosen(count: int, asked: bool | int | list[int]) -> list[bool]:
    """Say which of so many hidden states `output_hidden_states` asks for, by number or all."""
    if asked is True:
        return [True] * count
    numbers = [asked] if isinstance(asked, int) else asked
    return [place in numbers or place - count in numbers for place in range(count)]


# ---- The cache -----------------------------------------------------------------------------------


class VictorCache(DynamicCache):
    """A dynamic cache whose early layers are longer than its late ones.

    Its length is the caller's: tokens passed so far, placeholders included, registers not. For the
    early and the late layers it also keeps the padding mask, and for every row the next position.

    Args:
        config: Configuration of the text model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._start()

    def _start(self) -> None:
        self.seen = 0
        self.floor = 0
        self.dropped = False
        self.valid: list[Tensor] = []
        self.next_position: Tensor | None = None

    @classmethod
    def adopt(cls, cache: Any) -> "VictorCache | None":
        """Make an empty `DynamicCache` ours, in place; None for one that cannot be.

        It keeps its layers, and with them what they were told before: to record their past, so that
        what leaves a sliding window can come back.
        """
        if isinstance(cache, cls):
            return cache
        ordinary = type(cache) is DynamicCache and not cache.offloading
        if not ordinary or cache.get_seq_length() > 0:
            return None
        cache.__class__ = cls
        cache._start()
        return cache

    def window(self, start: int, stop: int) -> "CacheWindow":
        """Show layers start..stop-1 as a cache of their own."""
        return CacheWindow(self, start, stop)

    def mask(self, stage: int, valid: Tensor) -> Tensor:
        """Extend a stage's padding mask by the tokens that are about to enter; not yet recorded."""
        return torch.cat([self.valid[stage], valid], dim=1) if self.valid else valid

    def record(self, length: int, valid: list[Tensor], position: Tensor) -> None:
        """Note what a call has added.

        Args:
            length: Tokens of the caller.
            valid: Padding masks of the early and of the late layers, each [b, t of its stage].
            position: Positions in the early layers [b, t of the early].
        """
        after = (position + 1).masked_fill(~valid[0], 0).amax(dim=1)
        if self.next_position is not None:
            after = torch.maximum(after, self.next_position)
        self.valid = [self.mask(stage, new) for stage, new in enumerate(valid)]
        self.seen += length
        self.next_position = after

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the caller has passed, whatever the layer."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._start()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; `tokens_to_remove` is negative, as everywhere in transformers.

        Raises:
            ValueError: If an image would be cut, or padding in the place of some row's last tokens.
        """
        tokens_to_remove = max(tokens_to_remove, -self.seen)
        cuts = bool(self.valid) and tokens_to_remove < 0
        if cuts and self.seen + tokens_to_remove < self.floor:
            raise ValueError(
                f"crop({tokens_to_remove}) reaches into an image, which ends at token "
                f"{self.floor} of {self.seen}."
                "\n  fix: crop text only, or start again from an empty cache"
            )
        if cuts and not torch.equal(*(valid[:, tokens_to_remove:] for valid in self.valid)):
            raise ValueError(
                f"crop({tokens_to_remove}) meets padding, which the late layers do not hold."
                "\n  fix: pad on the left"
            )
        super().crop(tokens_to_remove)
        if cuts:
            self.next_position = self.next_position - self.valid[0][:, tokens_to_remove:].sum(dim=1)
            self.valid = [valid[:, :tokens_to_remove] for valid in self.valid]
            self.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows for beam search."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        if self.valid:
            rows = torch.arange(len(self.next_position), device=self.next_position.device)
            self._select(rows.repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        if self.valid:
            self.valid = [valid[rows.to(valid.device)] for valid in self.valid]
            self.next_position = self.next_position[rows.to(self.next_position.device)]


class CacheWindow(DynamicCache):
    """Layers start..stop-1 of a cache, with the true length of those layers."""

    def __init__(self, cache: VictorCache, start: int, stop: int) -> None:
        super().__init__()
        self.cache, self.layers = cache, cache.layers[start:stop]
        self.layer_class_to_replicate = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Store in the whole cache: layers know their number there."""
        return self.cache.update(key_states, value_states, layer_idx, *args, **kwargs)


# ---- The text model ------------------------------------------------------------------------------


class Mixed:
    """Mixed into the native class of a part of the model (`mix`)."""

    mixin: type
    native: type[nn.Module]

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (type(self).mixin, type(self).native), self.__getstate__()


@functools.cache
def mix(mixin: type, native: type[nn.Module]) -> type[nn.Module]:
    """Mix a class of ours into a native one.

    The new class keeps the native name and module: transformers looks up output capturing and key
    conversion by them.
    """
    names = {"__module__": native.__module__, "__qualname__": native.__qualname__}
    names |= {"mixin": mixin, "native": native}
    return type(native.__name__, (mixin, native), names)


def _empty(mixin: type, native: type[nn.Module]) -> nn.Module:
    """Make what a pickled part's state goes into."""
    made = mix(mixin, native)
    return made.__new__(made)


class VictorText(Mixed):
    """The text model, run as two slices of its own layers with the drop in between.

    `victor` is the module of the parameters, held without being registered here.
    """

    victor: Victor

    def layer_slice(self, start: int, stop: int) -> nn.Module:
        """Show decoder layers start..stop-1 as a native model that shares every parameter.

        The final norm belongs to the slice that holds the last layer. Nothing is registered and the
        state dict is unchanged.
        """
        last = len(self.layers)
        config = copy.copy(self.config)
        config.num_hidden_layers = stop - start
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[start:stop]
        native = type(self).native
        view = native.__new__(native)
        norm = self.norm if stop == last else nn.Identity()
        modules = {**self._modules, "layers": self.layers[start:stop], "norm": norm}
        view.__dict__.update(self.__dict__, config=config, _modules=modules)
        return view

    def run_slice(  # noqa: PLR0913
        self,
        start: int,
        stop: int,
        hidden: Tensor,
        tokens: Tokens,
        cache: VictorCache | None,
        *,
        registers: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run decoder layers start..stop-1 with the backbone's own forward.

        A backbone's sliding window counts the tokens of the slice: in late layers, those kept.

        Args:
            start: First layer.
            stop: Layer after the last.
            hidden: Input of layer `start` [b, t, d].
            tokens: What stands where.
            cache: Holds the keys and values of earlier calls; None to keep none.
            registers: False where there are none among the tokens: asking would wait for a GPU.
            **kwargs: Passed on to the backbone.

        Returns:
            Output of the backbone's forward over this slice.
        """
        stage = int(start >= self.victor.drop_layer)
        self.victor.open_gates(start, stop, tokens.rows() if registers else None)
        return type(self).native.forward(
            self.layer_slice(start, stop),
            inputs_embeds=hidden,
            attention_mask=tokens.valid if cache is None else cache.mask(stage, tokens.valid),
            position_ids=tokens.position,
            use_cache=cache is not None,
            **{CACHE: None if cache is None else cache.window(start, stop)},
            **kwargs,
        )

    def forward(  # noqa: PLR0913 (the native signature, and images)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the text model; `images` are those whose features `inputs_embeds` holds.

        Where there is nothing to drop, now or in the cache, this is the native forward. The cache
        is taken under both of its names.
        """
        given = past_key_values if cache is None else cache
        cache = self._cache(given, use_cache, images)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if images is not None or (cache is not None and cache.dropped):
            return self._forward_dropped(
                inputs_embeds, attention_mask, position_ids, cache, images, **kwargs
            )
        valid = None if cache is None else valid_tokens(attention_mask, inputs_embeds)
        self.victor.open_gates(0, len(self.layers), None)
        if self.training and torch.is_grad_enabled() and self.victor.enabled:
            inputs_embeds = self.victor.idle(inputs_embeds)
        output = super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: given if cache is None else cache},
            **kwargs,
        )
        if cache is not None:
            if position_ids is None:
                position_ids = (
                    torch.arange(inputs_embeds.shape[1], device=valid.device) + cache.seen
                )
            cache.record(valid.shape[1], [valid, valid], position_ids.expand_as(valid))
        return output

    def _forward_dropped(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: VictorCache | None,
        images: Images | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run [0, k), drop, run [k, n), and lay the states back onto the caller's columns."""
        length, last, k = hidden.shape[1], len(self.layers), self.victor.drop_layer
        asked = {name: kwargs.get(name, getattr(self.config, name, False)) for name in CAPTURED}
        if any(asked.values()):
            maybe_install_capturing_hooks(self)
        if asked["output_hidden_states"]:  # by number they are chosen below, not slice by slice
            kwargs["output_hidden_states"] = True
        hidden, early = self.arrange(hidden, attention_mask, position_ids, cache, images)
        kwargs["registers"] = images is not None
        first = self.run_slice(0, k, hidden, early, cache, **kwargs)
        hidden, late = first.last_hidden_state.to(hidden.device), early  # layers may lie on several
        if images is not None:
            hidden, late = self.victor.reduce(hidden, early)
        second = self.run_slice(k, last, hidden, late, cache, **kwargs)
        if cache is not None:
            cache.record(length, [early.valid, late.valid], early.position)
            if images is not None:
                cache.dropped = True
                cache.floor = cache.seen - length + int(images.column.max()) + 1
        states = attentions = None
        if first.hidden_states is not None:
            parts = [(first.hidden_states[:-1], early), (second.hidden_states, late)]
            pairs = [(state, at) for part, at in parts for state in part]
            wanted = chosen(len(pairs), asked["output_hidden_states"])
            states = tuple(
                scatter(*pair, length) if want else None
                for pair, want in zip(pairs, wanted, strict=True)
            )
        if first.attentions is not None:
            attentions = first.attentions + second.attentions
        return BaseModelOutputWithPast(
            last_hidden_state=scatter(second.last_hidden_state, late, length),
            hidden_states=states,
            attentions=attentions,
            **{CACHE: cache},
        )

    def arrange(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: VictorCache | None,
        images: Images | None,
    ) -> tuple[Tensor, Tokens]:
        """Say what stands where, registers inserted, at the positions that the settings ask for.

        `overlay`: registers take the positions of the last visual tokens, and text keeps those of
        the base model. `append`: registers follow the visual tokens, and text after them moves up.
        """
        append = self.victor.positions == "append"
        valid = valid_tokens(attention_mask, hidden)
        start = valid.new_zeros(len(valid), dtype=torch.long)
        if cache is not None and cache.next_position is not None:
            start = cache.next_position.to(hidden.device)
        position = next_positions(start, valid)
        if position_ids is not None:
            given = position_ids.to(hidden.device).expand_as(valid)
            check_positions(given, valid, packed=attention_mask is None, consecutive=append)
            position = position if append else given
        tokens = caller_tokens(valid, position, images)
        count = self.victor.registers.count
        if images is None or not self.victor.inserting:
            return hidden, tokens
        end = torch.cat([start[:, None] - 1, position], dim=1)[images.row, images.column + 1]
        registers = self.victor.registers(len(images.row)).to(hidden.device)
        hidden, tokens = insert_registers(hidden, tokens, images, registers, end - count + 1)
        if append:
            tokens = replace(tokens, position=next_positions(start, tokens.valid))
        return hidden, tokens

    def _cache(
        self, cache: Any, use_cache: bool | None, images: Images | None
    ) -> VictorCache | None:
        """Make or adopt a cache that can hold two lengths; None where the native one will do."""
        if cache is None:
            wanted = self.config.use_cache if use_cache is None else use_cache
            checkpointing = self.training and self.gradient_checkpointing
            return VictorCache(self.config) if wanted and not checkpointing else None
        adopted = VictorCache.adopt(cache)
        if adopted is None and images is not None:
            raise ValueError(
                "A Victor model cannot put an image into this cache: "
                f"{'offloaded ' if getattr(cache, 'offloading', False) else ''}"
                f"{type(cache).__name__}, {cache.get_seq_length()} tokens. It needs "
                f"layers of two lengths.\n  fix: pass no cache_implementation, and as {CACHE} "
                "an empty DynamicCache() or the cache that this model returned"
            )
        return adopted


def either_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a forward take the cache as `past_key_values` and, whatever the version, as `cache`."""

    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = [kwargs.pop(name) for name in ("cache", "past_key_values") if name in kwargs]
        for cache in given:
            kwargs[CACHE] = cache if kwargs.get(CACHE) is None else kwargs[CACHE]
        return forward(self, *args, **kwargs)

    return run


# ---- The inner model ----------------------------------------------------------------------------


class Modality(NamedTuple):
    """What models call the pixels of a kind of input, and its placeholder in the configuration."""

    pixels: str
    token: str


MODALITIES = {
    "image": Modality("pixel_values", "image_token_id"),
    "video": Modality("pixel_values_videos", "video_token_id"),
}


class VictorModel(Mixed):
    """The model without its head: finds the images that arrive and tells the text model.

    Trainers call it by itself, to spend less memory on logits.
    """

    @either_name
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and outputs are those of the native class.

        Raises:
            ValueError: For `inputs_embeds` without `input_ids`, fewer visual tokens than registers
                under `overlay`, packed sequences, or a cache that cannot hold two lengths.
        """
        if args:
            names = list(inspect.signature(type(self).native.forward).parameters)[1:]
            kwargs |= dict(zip(names, args, strict=False))
        if self.get_decoder().victor.enabled:
            if kwargs.get("input_ids") is None:
                raise ValueError(
                    "A Victor model cannot find the images in inputs_embeds."
                    "\n  fix: pass input_ids, with pixel_values or mm_encoder_outputs"
                )
            if made := self.encode(kwargs):
                kwargs["mm_encoder_outputs"] = made
                features = {name: each.pooler_output for name, each in made.items()}
                kwargs["images"] = self.find_images(kwargs["input_ids"], features)
        return super().forward(**kwargs)

    def encode(self, given: dict[str, Any]) -> dict[str, Any]:
        """Make features of pixels, by modality; those that came as features already stay.

        Args:
            given: Arguments of a call, from which pixels are taken.
        """
        features = {**(given.get("mm_encoder_outputs") or {})}
        for name, modality in MODALITIES.items():
            if given.get(modality.pixels) is not None and len(given[modality.pixels]) > 0:
                encode = getattr(self, f"get_{name}_features", None)
                if encode is None:  # frames are read as the tiles of a picture
                    encode, given["pixel_values"] = self.get_image_features, given[modality.pixels]
                takes = inspect.signature(encode).parameters.keys() & given.keys() - {"kwargs"}
                chosen = {key: given[key] for key in takes if given[key] is not None}
                features[name] = encode(**chosen, return_dict=True)
        for modality in MODALITIES.values():
            given.pop(modality.pixels, None)
        return {name: made for name, made in features.items() if made is not None}

    def find_images(self, input_ids: Tensor, features: Mapping[str, Iterable[Tensor]]) -> Images:
        """Find the placeholders of the images and videos whose features arrive in this call.

        Args:
            input_ids: Of the call [b, n].
            features: By modality, each [..., d].

        Raises:
            ValueError: If there are more or fewer, or under `overlay` fewer than registers.
        """
        victor, ends = self.get_decoder().victor, []
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        for name, own in features.items():
            visual = input_ids == getattr(self.config, MODALITIES[name].token)
            lengths = lengths_of(own)
            if int(visual.sum()) != sum(lengths):
                raise ValueError(self._mismatch(name, sum(lengths), int(visual.sum())))
            by_runs = name in victor.by_runs
            ends.append(ends_of_runs(visual) if by_runs else ends_by_length(visual, lengths))
            found |= visual
        images = find_images(found, torch.cat(ends))
        count = victor.registers.count
        if victor.positions == "overlay" and images.shortest() < count:
            raise ValueError(
                f"{count} registers cannot overlay an image of {images.shortest()} visual tokens."
                "\n  fix: convert with --positions append, or with fewer --registers"
            )
        return images

    def _mismatch(self, modality: str, features: int, tokens: int) -> str:
        token = getattr(self.config, MODALITIES[modality].token)
        thing = {"image": "picture", "video": "video"}[modality]
        return (
            f"{modality.title()} features and {modality} tokens do not match: {features} features "
            f"for {tokens} {modality} tokens.\n  fix: one <{modality}> in the text for every "
            f"{thing}, no truncation that cuts an image, and with prompt_lookup_num_tokens also "
            f"suppress_tokens=[{token}]"
        )


# ---- The folder ----------------------------------------------------------------------------------


def read_header(file: Path) -> dict[str, Any]:
    """Read the header of a safetensors file: tensor names to dtype, shape and offsets."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def write_indexes(folder: Path, base: Iterable[str]) -> None:
    """Write both indexes: the base's tensors alone, and all of them for the Victor class.

    Args:
        folder: Holds the weights.
        base: Names of the base's files; any other file is none of the model's.
    """
    base = sorted(base)
    write_index(folder / BASE_INDEX, base)
    write_index(folder / INDEX, sorted([*base, WEIGHTS]))


def write_index(index: Path, files: Iterable[str]) -> None:
    """Write which tensor is in which of the files beside the index."""
    tensors = {
        name: (file, entry)
        for file in files
        for name, entry in read_header(index.parent / file).items()
    }
    offsets = [entry["data_offsets"] for _, entry in tensors.values()]
    content = {
        "metadata": {"total_size": sum(stop - start for start, stop in offsets)},
        "weight_map": {name: tensors[name][0] for name in sorted(tensors)},
    }
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_config(folder: Path, settings: dict[str, Any], native: str, ours: str) -> None:
    """Add to `config.json` what makes the folder a Victor model and keeps it its base.

    Args:
        folder: Holds the `config.json` of the base.
        settings: The `victor` section.
        native: Class of the base.
        ours: Class in this file.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    remote = f"{Path(__file__).stem}.{ours}"
    names = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    config |= {
        "architectures": [native],
        "auto_map": dict.fromkeys(names, remote),
        "victor": settings,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")


# ---- What a caller sees --------------------------------------------------------------------------


def settings_in(config: dict[str, Any]) -> dict[str, Any]:
    """Read the `victor` section of a configuration.

    Raises:
        ValueError: If there is none.
    """
    if config.get("victor") is None:
        raise ValueError(
            "This configuration has no `victor` section: it is not that of a converted model."
            "\n  fix: victorctl convert SOURCE --out FOLDER"
        )
    return config["victor"]


class VictorMixin:
    """A LLaVA with registers: processor, prompts, `input_ids` and output shapes stay the same.

    `config.victor` holds `registers`, `drop_layer`, `positions` (`overlay` or `append`),
    `adapter` (None, or `rank`, `alpha` and `layers`: `early` or `all`), `deep` where registers have
    offsets, and `elastic` where fewer of them do as well (`from_pretrained(..., registers=4)`).
    """

    # Engines with one length for all layers must not pick this up.
    _supports_attention_backend = False
    # At batch size 1 it takes the gap that dropped tokens leave in the positions for another text.
    _supports_flash_attn = False
    _can_compile_fullgraph = False
    native: type[nn.Module]
    by_runs: tuple[str, ...] = ()

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text, settings = self.get_decoder(), settings_in(vars(config))
        if not 1 <= settings["drop_layer"] < len(text.layers):
            raise ValueError(
                f"drop_layer is {settings['drop_layer']}, and the text model has "
                f"{len(text.layers)} layers."
                f"\n  fix: choose 1 to {len(text.layers) - 1}"
            )
        self.loss_type = "ForConditionalGeneration"
        self.victor = Victor(settings, text.config.hidden_size, text.layers)
        self.victor.by_runs = self.by_runs
        self.model.__class__ = mix(VictorModel, type(self.model))
        text.__class__ = mix(VictorText, type(text))
        text.__dict__["victor"] = self.victor  # a plain reference: the state dict does not change
        self.init_weights()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but leave `victor` where the text model holds it.

        Raises:
            ValueError: For a wrapped `victor`, which would train a copy that nobody asks.
        """
        if name == "victor" and not isinstance(value, Victor):
            raise ValueError(
                f"`victor` cannot be put into a {type(value).__name__}: the layers hold it itself."
                "\n  fix: modules_to_save=['registers'], and requires_grad for low-rank updates"
            )
        super().__setattr__(name, value)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Put tensors into the model, as every module does.

        Raises:
            ValueError: For a base alone where what lacks is passed over: `Trainer` resumes so.
        """
        whole = any(name.endswith("embed_tokens.weight") for name in state_dict)
        if whole and not strict and not any(name.startswith(PREFIX) for name in state_dict):
            raise ValueError(
                "This is a base without its registers, as Trainer finds when it resumes or takes "
                "the best checkpoint: it reads model.safetensors alone."
                "\n  fix: from_pretrained(checkpoint), without resume_from_checkpoint and "
                "load_best_model_at_end; to put another base under these registers, "
                "load_state_dict(model.state_dict() | base)"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw registers like token embeddings; fresh offsets and low-rank updates are zero."""
        if isinstance(module, Registers):
            nn.init.normal_(module.weight, std=self.config.get_text_config().initializer_range)
        elif isinstance(module, Offset):
            nn.init.zeros_(module.weight)
        elif isinstance(module, LowRank):
            nn.init.normal_(module.down, std=module.down.shape[1] ** -0.5)
            nn.init.zeros_(module.up)
        else:
            super()._init_weights(module)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        **kwargs: Any,
    ) -> None:
        """Checkpoint layers so that computing them again finds the same registers."""
        function = self.victor.keep_gates(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **kwargs)

    @contextmanager
    def registers_off(self) -> Iterator[None]:
        """Be the unconverted model for a while, in every thread: no registers, nothing dropped."""
        before, self.victor.enabled = self.victor.enabled, False
        self.victor.detach(self.get_decoder().layers)
        try:
            yield
        finally:
            self.victor.enabled = before
            if before:
                self.victor.attach(self.get_decoder().layers)

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        """Read the prompt, in chunks if so asked, each with the features of its own images."""
        size, cache = generation_config.prefill_chunk_size, model_kwargs.get(CACHE)
        made = model_kwargs.get("mm_encoder_outputs") or {}
        made = {name: each for name, each in made.items() if each is not None}
        ours = is_first_iteration and self.victor.enabled and made
        if not ours or None in (size, cache):
            return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        mask = model_kwargs.get("attention_mask")
        covered = generation_config._mask_length if mask is None else mask.shape[1]
        if covered == input_ids.shape[1]:  # else these are the new tokens alone
            input_ids = input_ids[:, cache.get_seq_length() :]
        self._check_chunks(input_ids, made, size)
        whole = copy.copy(generation_config)
        whole.prefill_chunk_size = None
        for number, chunk in enumerate(input_ids.split(size, dim=1)):
            own = {
                name: self._chunk(input_ids, name, each, size, number)
                for name, each in made.items()
            }
            given = {**model_kwargs, "mm_encoder_outputs": own}
            for name in ("attention_mask", "position_ids"):
                if given.get(name) is not None:
                    given[name] = given[name][:, : cache.get_seq_length() + chunk.shape[1]]
            output = super()._prefill(chunk, whole, given)
        return output

    def _check_chunks(self, input_ids: Tensor, made: Mapping[str, Any], size: int) -> None:
        """Refuse to cut a prompt into chunks of so many columns.

        Raises:
            ValueError: If that would cut an image.
        """
        features = {name: each.pooler_output for name, each in made.items()}
        images = self.model.find_images(input_ids, features)
        chunk = images.visual.nonzero()[:, 1] // size  # of every placeholder
        number = images.numbers()[images.visual]
        if bool((chunk != (images.column // size)[number]).any()):
            raise ValueError(
                f"prefill_chunk_size {size} cuts an image, whose registers follow its end."
                "\n  fix: leave prefill_chunk_size out, or let chunks end between images"
            )

    def _chunk(self, input_ids: Tensor, name: str, made: Any, size: int, number: int) -> Any:
        """Take the features of one modality that stand in a chunk of the prompt; None for none."""
        visual = input_ids == getattr(self.config, MODALITIES[name].token)
        chunk = visual.nonzero()[:, 1] // size  # of every placeholder
        if not bool((chunk == number).any()):
            return None
        if name in self.by_runs:  # a feature may be of several images, which chunks take apart
            whole = torch.cat([feature.flatten(0, -2) for feature in made.pooler_output])
            own = [whole[chunk == number]]
        else:
            places = chunk.split(lengths_of(made.pooler_output))
            pairs = zip(made.pooler_output, places, strict=True)
            own = [feature for feature, place in pairs if place[0] == number]
        one_tensor = isinstance(made.pooler_output, Tensor)
        return type(made)(pooler_output=torch.stack(own) if one_tensor else own)

    def _get_candidate_generator(self, *, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """Let tokens be guessed ahead, unless transformers would read what is cached once more.

        Raises:
            ValueError: If anything is cached.
        """
        seen = model_kwargs[CACHE].get_seq_length()
        if seen > 0:
            raise ValueError(
                f"Guessing tokens ahead reads the whole prompt, and {seen} tokens of it are cached."
                f"\n  fix: leave out {CACHE}, or prompt_lookup_num_tokens and assistant_model"
            )
        return super()._get_candidate_generator(model_kwargs=model_kwargs, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        path: Any,
        *args: Any,
        output_loading_info: bool = False,
        registers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a folder that victorctl or `save_pretrained` wrote, as transformers' own classes do.

        Args:
            path: See there, as for all that is not named here.
            args: See there.
            output_loading_info: See there.
            registers: Take so many of the registers alone, of a model that was trained for any
                number of them (`train.elastic`).
            kwargs: See there.

        Raises:
            ValueError: If the model is not converted, or a tensor is missing, unexpected or of
                another shape, or there are fewer registers.
        """
        if kwargs.get("config") is None:
            found, _ = cls.config_class.get_config_dict(path, **kwargs)
            if found:  # nothing is where peft's adapter lies, which names its model's folder
                settings_in(found)
        kwargs |= {"variant": VARIANT, "use_safetensors": True}
        kwargs["ignore_mismatched_sizes"] = True  # ours is the better error
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        wrong = {name: keys for name, keys in info.items() if "keys" in name and keys}
        if wrong:
            raise ValueError(
                f"{path} does not hold this model: {wrong}\n  fix: convert or download it again"
            )
        model.victor.attach(model.get_decoder().layers)
        if registers is not None:
            model.victor.keep(registers)
            model.config.victor = {**model.config.victor, "registers": registers}
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the folder that holds two models: the base under its own names, Victor beside it.

        Raises:
            ValueError: For `push_to_hub`, which would upload the base before Victor is written, and
                for a state that has not every tensor of Victor's.
        """
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) would upload a folder without its registers."
                "\n  fix: save_pretrained(folder), then hf upload REPO folder"
            )
        if self._hf_peft_config_loaded:  # peft's adapter alone is saved, as everywhere
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
            return
        folder = Path(save_directory)
        state = self.state_dict() if state_dict is None else state_dict
        own = {
            name: tensor if tensor.device.type != "meta" else load_offloaded_parameter(self, name)
            for name, tensor in state.items()
            if name.startswith(PREFIX)
        }
        own = {name: tensor.detach().contiguous().cpu() for name, tensor in own.items()}
        names = {PREFIX + name for name, _ in self.victor.named_parameters()}
        if is_main_process and own.keys() != names:
            raise ValueError(
                f"This state has {len(own)} of Victor's {len(names)} tensors, and a folder without "
                "them would lose what was learned.\n  fix: pass names as in model.state_dict(), "
                f"such as {min(names)}, or no state_dict"
            )
        self._keys_to_ignore_on_save |= own.keys()  # also where a quantizer makes the state dict
        if is_main_process:  # from before, they would hide what takes their place
            (folder / BASE_WEIGHTS).unlink(missing_ok=True)
            (folder / BASE_INDEX).unlink(missing_ok=True)
        kwargs["variant"] = None
        super().save_pretrained(folder, is_main_process, state_dict={**state}, **kwargs)
        if is_main_process:
            index = folder / BASE_INDEX  # written where there are several files
            shards = json.loads(index.read_text("utf-8"))["weight_map"] if index.exists() else {}
            save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
            write_indexes(folder, sorted(set(shards.values())) or [BASE_WEIGHTS])
            ours = type(self).__name__.removeprefix("FSDP")  # which sharding puts in front
            write_config(folder, self.config.victor, self.native.__name__, ours)
            if Path(__file__).resolve() != (folder / Path(__file__).name).resolve():
                shutil.copyfile(__file__, folder / Path(__file__).name)


class Family(NamedTuple):
    """What is special about the models of one native class."""

    native: str
    by_runs: tuple[str, ...] = ()
    """Modalities of which a run of placeholders is one image: their features are parts of it."""


FAMILIES = {
    "VictorLlava": Family("LlavaForConditionalGeneration"),
    "VictorVipLlava": Family("VipLlavaForConditionalGeneration"),
    "VictorLlavaNext": Family("LlavaNextForConditionalGeneration"),
    "VictorLlavaNextVideo": Family("LlavaNextVideoForConditionalGeneration"),
    "VictorLlavaOnevision": Family("LlavaOnevisionForConditionalGeneration"),
    "VictorVideoLlava": Family("VideoLlavaForConditionalGeneration", by_runs=("video",)),
    "VictorFastVlm": Family("FastVlmForConditionalGeneration"),
    "VictorGotOcr2": Family("GotOcr2ForConditionalGeneration", by_runs=("image",)),
    "VictorInternVL": Family("InternVLForConditionalGeneration", by_runs=("image",)),
    "VictorMistral3": Family("Mistral3ForConditionalGeneration"),
    "VictorAyaVision": Family("AyaVisionForConditionalGeneration", by_runs=("image",)),
    "VictorCohere2Vision": Family("Cohere2VisionForConditionalGeneration", by_runs=("image",)),
    "VictorIdefics3": Family("Idefics3ForConditionalGeneration", by_runs=("image",)),
    "VictorPerceptionLM": Family(
        "PerceptionLMForConditionalGeneration", by_runs=("image", "video")
    ),
    "VictorSmolVLM": Family("SmolVLMForConditionalGeneration", by_runs=("image",)),
}
"""By the name of the class in this file."""


def __getattr__(name: str) -> type[VictorMixin]:
    """Make the class of a family when it is first asked for: only its native module is imported."""
    if name not in FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    native = getattr(transformers, FAMILIES[name].native)
    own = {
        "__module__": __name__,
        "__doc__": f"{native.__name__} with registers.",
        "native": native,
        "forward": either_name(native.forward),
        "by_runs": FAMILIES[name].by_runs,
    }
    made = globals()[name] = type(name, (VictorMixin, native), own)
    mapping = get_checkpoint_conversion_mapping(native.config_class.model_type)
    if mapping is not None:  # else names in files are those in memory
        register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
    return made
