"""Methods that act on what the vision tower sees: the engine between tower and language model.

What a method keeps of a picture is put into the places of its patches, so that the number of visual
tokens stays what the prompt says; the places that nothing goes on from are dropped before the first
layer of the language model. So tiles, rows' ends and every family's own code stay as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from victorctl.errors import VictorError
from victorctl.methods.base import Inside, Method, Tile, checked
from victorctl.methods.watching import Watch, attention_of
from victorctl.modeling_victor import VictorMixin

NEWLINE = -1  # where a packed row ends
PATCHES = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision")
GOLDEN = 0.618033988749895
TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Families whose projector makes one token of each patch, and towers whose layers are known."""


class Seeing:
    """A method that acts before the projector.

    Args:
        method: Decides.
        model: Its tower and projector are watched.

    Raises:
        VictorError: If the model's projector does not make one token of each patch, and of nothing
            else, or the tower is not known.
    """

    def __init__(self, method: Method, model: VictorMixin) -> None:
        self.method, self.inner, config = method, model.model, model.config
        if (why := unsuited(config)) is not None:
            raise self._refused(why)
        self._has_class = config.vision_config.model_type.startswith("clip")
        if self._has_class and getattr(config, "vision_feature_select_strategy", "") == "full":
            raise self._refused("this one hands its class token on, too")
        self.tower, self.projector = self.inner.vision_tower, self.inner.multi_modal_projector
        self.layers = layers_of(self.tower)
        taken = config.vision_feature_layer
        self.taken = [taken] if isinstance(taken, int) else [*taken]
        read = [layer % (len(self.layers) + 1) for layer in self.taken]
        self.depth = max(read)
        if any(layer >= min(read) for layer in method.within(self.depth)):
            raise self._refused(f"{config.model_type} reads some layers before the last is trimmed")
        looks = self.method.looks(self.depth)
        looks = tuple(min(layer, len(self.layers) - 1) for layer in looks)
        self.watch = Watch({layer: attention_of(self.layers[layer]) for layer in looks})
        sizes = self.tower.config
        self.side = sizes.image_size // sizes.patch_size
        self.places = patches(config)
        self._rows: Sequence[int] = ()
        self._states: Tensor | None = None
        self._live: Tensor | None = None
        self._loose = False  # whether what is kept has no places of its own
        self._packed: list[Tensor] | None = None

    @contextmanager
    def acting(self, rows: Sequence[int]) -> Iterator[None]:
        """Act for a while; see `Engine.acting`."""
        self._live = self._packed = None
        self._rows = rows
        with ExitStack() as stack:
            stack.enter_context(self.watch.watching())
            for handle in (
                self.tower.register_forward_pre_hook(self._resize, with_kwargs=True),
                self.tower.register_forward_hook(self._look),
                self.projector.register_forward_pre_hook(self._choose),
            ):
                stack.callback(handle.remove)
            for layer in self.method.within(self.depth):
                hook = partial(self._trim, layer)
                handle = self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            own = {"pack_image_features": self._pack, "get_video_features": self._refuse_video}
            for name in own.keys() & set(dir(type(self.inner))):
                self.inner.__dict__[name] = own[name]
                stack.callback(self.inner.__dict__.pop, name)
            yield

    def live(self, visual: Tensor) -> Tensor:
        """Tell which visual tokens go on of what was seen last, in reading order [v].

        Args:
            visual: Where the batch has them [b, t].

        Raises:
            ValueError: If nothing was seen.
        """
        if self.method.extras and not bool(visual.any(dim=1).all()):
            raise self._several("a question without a picture")
        if self._live is None:
            raise ValueError(
                f"{type(self.method).__name__} acts in the vision tower, and got features."
                "\n  fix: pass pixel_values"
            )
        if self._packed is None:
            live = self._live.flatten()
        else:
            live = torch.cat([self._of_picture(ids) for ids in self._packed])
        self._live = self._packed = None
        return live

    def _resize(self, _tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Show the tower a smaller picture, where the method asks for one."""
        side = self.method.side(self.side)
        if side in (None, self.side):
            return None
        pixels = args[0] if args else kwargs.pop("pixel_values")
        size = side * self.tower.config.patch_size
        smaller = interpolate(pixels.float(), (size, size), mode="bicubic", antialias=True)
        return (smaller.to(pixels), *args[1:]), kwargs | {"interpolate_pos_encoding": True}

    def _look(self, _tower: nn.Module, _args: Any, output: Any) -> None:
        states = [output.hidden_states[layer] for layer in self.taken]
        self._states = torch.cat(states, dim=-1)  # [tiles, t, c]

    def _trim(
        self, layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Let the method trim before one of the tower's layers."""
        hidden, *others = args if args else (kwargs.pop("hidden_states"),)
        seen = self._look_ahead(layer, hidden, others, kwargs)
        first, out = int(self._has_class), []
        for number, states in enumerate(hidden[:, first:]):
            inside = self._inside(layer, number, states, seen, len(hidden))
            kept = checked(self.method.trim(inside), len(states), self.method)
            own = states[kept.index] if kept.states is None else kept.states.to(states)
            out.append(torch.cat([hidden[number, :first], own]))
        return (torch.stack(out), *others), kwargs

    def _look_ahead(
        self, layer: int, hidden: Tensor, others: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Run some layers on, and see what the class token attends to [tiles, heads, n]."""
        count = self.method.ahead(layer, self.depth)
        if count == 0:
            return None
        last, first = layer + count - 1, int(self._has_class)
        watch = Watch({last: attention_of(self.layers[last])})
        with watch.watching():
            for each in self.layers[layer : layer + count]:
                hidden = each.forward(hidden, *others, **kwargs)  # past all hooks: it is no pass
            asking = torch.arange(1 if first else hidden.shape[1], device=hidden.device)
            rows = [watch.seen[last].rows(n, asking).mean(dim=1) for n in range(len(hidden))]
        return torch.stack(rows)[..., first:]

    def _inside(
        self, layer: int, number: int, states: Tensor, seen: Tensor | None, tiles: int
    ) -> Inside:
        own = None if seen is None else seen[number]
        row = self._row(number, tiles) if self.method.extras else 0
        generator = torch.Generator().manual_seed(crc32(f"{self.method.seed} {row}".encode()))
        side = self.side, self.side
        return Inside(layer, self.depth, states, self.places, side, own, row, generator)

    def _row(self, number: int, tiles: int) -> int:
        """Find the prompt that a picture is in; `live` will see whether each has one."""
        if tiles != len(self._rows):
            raise self._several(f"{tiles} pictures or tiles in {len(self._rows)} questions")
        return self._rows[number]

    def _several(self, found: str) -> VictorError:
        return VictorError(
            f"{type(self.method).__name__}: {found}; what is given for a row is for one picture",
            fix="ask questions with one picture each, of a model without tiles",
        )

    def _refuse_video(self, *_args: Any, **_kwargs: Any) -> None:
        raise self._refused("videos are not tried")

    def _refused(self, why: str) -> VictorError:
        return VictorError(
            f"{type(self.method).__name__} acts on a tower's patches one by one, and {why}",
            fix="choose a method that acts in the language model: victorctl methods",
        )

    def _choose(self, _projector: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Ask the method about every tile, and put what it keeps into places of its patches."""
        features, *others = args
        out, live, self._packed = [], [], None
        places = max(self.places, features.shape[1])
        for number, tile in enumerate(features):
            kept = checked(self.method.see(self._tile(number, tile)), len(tile), self.method)
            self._loose = kept.states is not None or len(tile) < places
            own = torch.zeros(places, dtype=torch.bool, device=tile.device)
            own[kept.index] = True
            states = tile[kept.index] if kept.states is None else kept.states
            filled = tile if len(tile) == places else tile.new_zeros(places, tile.shape[1])
            out.append(filled.index_copy(0, kept.index, states.to(tile)))
            live.append(own)
        self._live = torch.stack(live)
        return torch.stack(out), *others

    def _tile(self, number: int, features: Tensor) -> Tile:
        states = self._states[number]

        def attend(layer: int, queries: Tensor) -> Tensor:
            return self._seen(layer).rows(number, queries.to(states.device))

        def compare(layer: int) -> tuple[Tensor, Tensor]:
            seen = self._seen(layer)
            return seen.query[number], seen.key[number]

        return Tile(features, states, self._has_class, self.depth, attend, compare)

    def _seen(self, layer: int) -> Any:
        return self.watch.seen[min(layer, len(self.layers) - 1)]

    def _pack(self, features: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Let tiles be packed into pictures as ever, and note what comes to stand where."""
        pack = type(self.inner).pack_image_features
        start, numbers = 0, []
        for tiles in features:
            count = tiles[..., 0].numel()
            ids = torch.arange(start, start + count, device=tiles.device).view(tiles.shape[:-1])
            numbers.append(torch.stack([ids.float(), _mark(ids)], dim=-1))
            start += count
        marked = dict(kwargs)
        if marked.get("image_newline") is not None:
            marked["image_newline"] = torch.full_like(numbers[0][0, 0], NEWLINE)
        packed, _ = pack(self.inner, numbers, *args, **marked)
        self._packed = [each[..., 0].long() for each in packed]
        ids, marks = torch.cat(self._packed), torch.cat([each[..., 1] for each in packed])
        if not bool(((_mark(ids) == marks) | (ids == NEWLINE)).all()):
            raise self._refused("the model shrinks a picture of so many tiles, which mixes them")
        return pack(self.inner, self._inside_picture(features, ids), *args, **kwargs)

    def _inside_picture(self, features: Sequence[Tensor], ids: Tensor) -> Sequence[Tensor]:
        """Put what has no place of its own into places that are not cut off with the padding."""
        there = torch.zeros_like(self._live.flatten()).index_fill(0, ids[ids != NEWLINE], True)
        out = torch.cat([*features])
        for tile, own in enumerate(there.view_as(self._live)):
            if self._loose and not own.all():
                count = int(self._live[tile].sum())
                places = own.nonzero().squeeze(1)[:count]
                out[tile, places] = out[tile, : len(places)].clone()
                self._live[tile] = torch.zeros_like(own).index_fill(0, places, True)
        return out.split([len(tiles) for tiles in features])

    def _of_picture(self, ids: Tensor) -> Tensor:
        """Tell what goes on of a packed picture: a row's end does if a token of the row does."""
        live, patches = self._live.flatten(), self._live.shape[1]
        ends = ids == NEWLINE
        stays = live[ids.clamp(min=0)] & ~ends
        if not ends.any():
            return stays
        tiles = ids.clamp(min=0) // patches
        several = bool((tiles[~ends] != tiles[~ends][0]).any())
        whole = (tiles == tiles[~ends][0]) & several & ~ends  # the picture as a whole has no rows
        row = ends.cumsum(0) - ends.long()
        alive = torch.zeros(int(row.max()) + 1, dtype=torch.long, device=ids.device)
        alive = alive.index_add(0, row, (stays & ~whole).long())
        return torch.where(ends, alive[row] > 0, stays)


def unsuited(config: Any) -> str | None:
    """Say why methods cannot act before a model's projector; None where they can.

    Args:
        config: Of the model.
    """
    if config.model_type not in PATCHES:
        return f"the projector of {config.model_type} makes tokens of several"
    if config.vision_config.model_type not in TOWERS:
        return f"this one is a {config.vision_config.model_type}"
    return None


def patches(config: Any) -> int:
    """Count the patches of a picture, or of a tile, that a tower is shown as usual."""
    vision = config.vision_config
    return (vision.image_size // vision.patch_size) ** 2


def layers_of(tower: nn.Module) -> nn.ModuleList:
    """Find a tower's layers."""
    encoder = getattr(tower, "encoder", None) or tower.vision_model.encoder
    return encoder.layers


def _mark(ids: Tensor) -> Tensor:
    """Give every number another, such that no mean of several has the one of their mean."""
    return (ids.float() * GOLDEN).frac()
