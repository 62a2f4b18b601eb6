"""Lets any method act in a Victor model's place: batches, masks, cache, positions and the count."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from victorctl.errors import VictorError
from victorctl.methods.base import Method, Prompt, checked
from victorctl.methods.seeing import Seeing
from victorctl.methods.watching import Watch, attention_of
from victorctl.modeling_victor import (
    CACHE,
    VISUAL,
    Images,
    Tokens,
    VictorCache,
    VictorMixin,
    keep,
    next_positions,
    scatter,
)


class Engine:
    """A method that acts in a model; meanwhile nothing of Victor's does.

    Args:
        method: Decides.
        model: Holds the unconverted weights.

    Raises:
        VictorError: If the model has not what the method acts on.
    """

    def __init__(self, method: Method, model: VictorMixin) -> None:
        self.method, self.model, self.text = method, model, model.get_decoder()
        self.depth = len(self.text.layers)
        self.seeing = Seeing(method, model) if method.sees else None
        own = set(method.before(self.depth))
        if max(own, default=0) >= self.depth:
            raise VictorError(
                f"{type(method).__name__} acts before layer {max(own)}, counted from 0, and the "
                f"language model has {self.depth}",
                fix=f"choose a layer below {self.depth}",
            )
        self.cuts = own | ({0} if self.seeing else set())
        self.edges = sorted({0, self.depth} | self.cuts)
        read = method.reads(self.depth)
        self.watch = Watch({layer: attention_of(self.text.layers[layer]) for layer in read})
        self.entered: list[list[int]] = []
        """Visual tokens that entered each layer in the last prefill, row by row."""
        self._rows: Sequence[int] = ()
        self._stores: list[dict[str, Any]] = []

    @contextmanager
    def acting(self, rows: Sequence[int]) -> Iterator[None]:
        """Act for a while.

        Args:
            rows: A number for each prompt that does not depend on the prompts beside it.
        """
        victor, self._rows = self.model.victor, rows
        self.entered = [[0] * self.depth for _ in rows]
        before = victor.inserting
        victor.inserting = False
        victor.detach(self.text.layers)
        self.text.__dict__["_forward_dropped"] = self._forward
        try:
            with ExitStack() as stack:
                stack.enter_context(self.watch.watching())
                if self.seeing:
                    stack.enter_context(self.seeing.acting(rows))
                yield
        finally:
            del self.text.__dict__["_forward_dropped"]
            victor.inserting = before
            victor.attach(self.text.layers)

    def _forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: VictorCache | None,
        images: Images | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers slice by slice, and let the method reduce between them."""
        length, native = hidden.shape[1], type(self.text).native
        hidden, tokens = self.text.arrange(hidden, attention_mask, position_ids, cache, images)
        if cache is not None and len(cache.valid) not in (0, len(self.edges) - 1):
            cache.valid = [cache.valid[0]] * (len(self.edges) - 1)
        if images is not None:
            self.entered, self._stores = [[] for _ in hidden], [{} for _ in hidden]
        # Positions go on behind dropped tokens, too; for `compact` nobody asks for them.
        ahead = (tokens.position + 1).masked_fill(~tokens.valid, 0).amax(dim=1)
        valid, position = [], []
        for stage, (start, stop) in enumerate(pairwise(self.edges)):
            if images is not None and start in self.cuts:
                hidden, tokens = self._reduce(start, hidden, tokens)
            if self.method.positions == "compact":
                tokens = replace(tokens, position=_counted(cache, stage, tokens.valid))
            if images is not None:
                self._note(stop - start, tokens)
            output = native.forward(
                self.text.layer_slice(start, stop),
                inputs_embeds=hidden,
                attention_mask=tokens.valid if cache is None else cache.mask(stage, tokens.valid),
                position_ids=tokens.position,
                use_cache=cache is not None,
                **{CACHE: None if cache is None else cache.window(start, stop)},
                **kwargs,
            )
            hidden = output.last_hidden_state.to(hidden.device)  # layers may lie on several
            valid.append(tokens.valid)
            position.append(tokens.position)
        if cache is not None:
            cache.record(length, valid, position[0])
            cache.next_position = torch.maximum(cache.next_position, ahead)
            cache.dropped = True
        return BaseModelOutputWithPast(
            last_hidden_state=scatter(hidden, tokens, length), **{CACHE: cache}
        )

    def _note(self, layers: int, tokens: Tokens) -> None:
        """Count what enters so many layers."""
        visual = ((tokens.kind == VISUAL) & tokens.valid).sum(dim=1).tolist()
        for row, count in zip(self.entered, visual, strict=True):
            row += [count] * layers

    def _reduce(self, layer: int, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
        """Let the method decide about every prompt, and gather what goes on."""
        stays, changed = tokens.valid.clone(), None
        if layer == 0 and self.seeing:
            shown = (tokens.kind == VISUAL) & tokens.valid
            stays[shown] = self.seeing.live(shown)
            if 0 not in self.method.before(self.depth):
                return keep(hidden, tokens, stays)
            hidden, tokens = keep(hidden, tokens, stays)
            stays = tokens.valid.clone()
        for row in range(len(hidden)):
            columns = tokens.valid[row].nonzero().squeeze(1)
            visual = (tokens.kind[row, columns] == VISUAL).nonzero().squeeze(1)
            if len(visual) == 0:
                continue
            prompt = self._prompt(layer, row, hidden, tokens, columns, visual)
            kept = checked(self.method.reduce(prompt), len(visual), self.method)
            places = columns[visual]
            stays[row, places] = False
            stays[row, places[kept.index]] = True
            if kept.states is not None:
                changed = hidden.clone() if changed is None else changed
                changed[row, places[kept.index]] = kept.states.to(hidden)
        return keep(hidden if changed is None else changed, tokens, stays)

    def _prompt(  # noqa: PLR0913
        self,
        layer: int,
        row: int,
        hidden: Tensor,
        tokens: Tokens,
        columns: Tensor,
        visual: Tensor,
    ) -> Prompt:
        """Show one prompt without its padding."""
        image = tokens.image[row, columns[visual]]

        def attend(read: int, queries: Tensor) -> Tensor:
            asking = columns[queries]
            allowed = tokens.valid[row] & (
                torch.arange(tokens.valid.shape[1], device=columns.device) <= asking[:, None]
            )
            return self.watch.seen[read].rows(row, asking, allowed)[..., columns]

        seed = crc32(f"{self.method.seed} {self._rows[row]} {layer}".encode())
        return Prompt(
            layer,
            hidden[row, columns],
            visual,
            image - image.min(),
            attend,
            torch.Generator().manual_seed(seed),
            self._stores[row],
        )


def _counted(cache: VictorCache | None, stage: int, valid: Tensor) -> Tensor:
    """Number tokens on from what the layers of a stage hold [b, t]."""
    start = valid.new_zeros(len(valid), dtype=torch.long)
    if cache is not None and cache.valid:
        start = cache.valid[stage].sum(dim=1)
    return next_positions(start, valid)
