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
from victorctl.methods.base import Inside, Method, Tile
from victorctl.methods.watching import Watch
from victorctl.modeling_victor import VictorMixin

NEWLINE = -1  # where a packed row ends


class Seeing:
    """A method that acts before the projector.

    Args:
        method: Decides.
        model: Its tower and projector are watched.

    Raises:
        VictorError: If the model's projector does not make one token of each patch.
    """

    def __init__(self, method: Method, model: VictorMixin) -> None:
        self.method, self.inner, config = method, model.model, model.config
        self.tower = getattr(self.inner, "vision_tower", None)
        self.projector = getattr(self.inner, "multi_modal_projector", None)
        self.feature_layer = getattr(config, "vision_feature_layer", None)
        self.whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
        if self.feature_layer is None or self.projector is None or self.tower is None:
            raise VictorError(
                f"{type(method).__name__} acts on a tower's patches one by one, and the projector "
                f"of {config.model_type} makes tokens of several",
                fix="choose a method that acts in the language model: victorctl methods",
            )
        self.layers = layers_of(self.tower)
        taken = (
            self.feature_layer
            if isinstance(self.feature_layer, int)
            else max(self.feature_layer, key=lambda at: at % (len(self.layers) + 1))
        )
        self.depth = taken % (len(self.layers) + 1)
        self.taken = taken
        looks = self.method.looks(self.depth)
        looks = tuple(min(layer, len(self.layers) - 1) for layer in looks)
        self.watch = Watch({layer: attention(self.layers[layer]) for layer in looks})
        sizes = self.tower.config
        self.side = sizes.image_size // sizes.patch_size
        self.places = self.side**2
        self._has_class = sizes.model_type.startswith("clip")
        self._rows: Sequence[int] = ()
        self._states: Tensor | None = None
        self._live: Tensor | None = None
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
            if hasattr(self.inner, "pack_image_features"):
                self.inner.__dict__["pack_image_features"] = self._pack
                stack.callback(self.inner.__dict__.pop, "pack_image_features")
            yield

    def live(self) -> Tensor:
        """Tell which visual tokens of the batch go on, in reading order [v]."""
        if self._packed is None:
            return self._live.flatten()
        return torch.cat([self._of_picture(ids) for ids in self._packed])

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
        self._states = output.hidden_states[self.taken]  # [tiles, t, c]

    def _trim(
        self, layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Let the method trim before one of the tower's layers."""
        hidden, *others = args if args else (kwargs.pop("hidden_states"),)
        seen = self._look_ahead(layer, hidden, others, kwargs)
        first, out = int(self._has_class), []
        for number, states in enumerate(hidden[:, first:]):
            kept = self.method.trim(self._inside(layer, number, states, seen, len(hidden)))
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
        watch = Watch({last: attention(self.layers[last])})
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
        if self.method.extras and tiles != len(self._rows):
            raise VictorError(
                f"{type(self.method).__name__}: {tiles} pictures or tiles for {len(self._rows)} "
                "questions; what is given for a row is for one picture",
                fix="ask questions with one picture each, of a model without tiles",
            )
        row = self._rows[number] if tiles == len(self._rows) else 0
        generator = torch.Generator().manual_seed(crc32(f"{self.method.seed} {row}".encode()))
        side = self.side, self.side
        return Inside(layer, self.depth, states, self.places, side, own, row, generator)

    def _choose(self, _projector: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Ask the method about every tile, and put what it keeps into places of its patches."""
        features, *others = args
        out, live = [], []
        places = max(self.places, features.shape[1])
        for number, tile in enumerate(features):
            kept = self.method.see(self._tile(number, tile))
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

        generator = torch.Generator().manual_seed(self.method.seed)
        return Tile(features, states, self._has_class, self.depth, attend, compare, generator)

    def _seen(self, layer: int) -> Any:
        return self.watch.seen[min(layer, len(self.layers) - 1)]

    def _pack(self, features: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Let tiles be packed into pictures as ever, and note what comes to stand where."""
        pack = type(self.inner).pack_image_features
        start, numbers = 0, []
        for tiles in features:
            count = tiles[..., 0].numel()
            ids = torch.arange(start, start + count, dtype=torch.float64, device=tiles.device)
            numbers.append(ids.view(*tiles.shape[:-1], 1))
            start += count
        marked = dict(kwargs)
        if marked.get("image_newline") is not None:
            marked["image_newline"] = torch.full((1,), NEWLINE, dtype=torch.float64).to(ids)
        packed, _ = pack(self.inner, numbers, *args, **marked)
        ids = torch.cat([each[..., 0] for each in packed])
        if not torch.equal(ids, ids.round()):
            raise VictorError(
                f"{type(self.method).__name__}: the model shrinks a picture of so many tiles, which "
                "mixes its patches",
                fix="choose a method that acts in the language model: victorctl methods",
            )
        self._packed = [each[..., 0].long() for each in packed]
        return pack(self.inner, features, *args, **kwargs)

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


def layers_of(tower: nn.Module) -> nn.ModuleList:
    """Find a tower's layers."""
    encoder = getattr(tower, "encoder", None) or tower.vision_model.encoder
    return encoder.layers


def attention(layer: nn.Module) -> nn.Module:
    """Find the attention of a tower's layer."""
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention
