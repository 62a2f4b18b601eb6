"""What methods are shown, built from tables instead of a model."""

import torch

from victorctl.methods.base import Inside, Prompt, Tile


def prompt(attention, *, layer, visual, states=None, image=None, store=None):  # noqa: PLR0913
    """A prompt; `attention` has a table [heads, t, t] for each layer that may be asked."""
    length = len(next(iter(attention.values()))[0]) if states is None else len(states)
    return Prompt(
        layer,
        torch.arange(length, dtype=torch.float32)[:, None] if states is None else states,
        torch.tensor(visual),
        torch.tensor([0] * len(visual) if image is None else image),
        lambda asked, queries: torch.as_tensor(attention[asked])[:, queries],
        torch.Generator().manual_seed(0),
        {} if store is None else store,
    )


def tile(attention, *, features=None, states=None, compared=None, has_class=True, layers=23):  # noqa: PLR0913
    """A tile; `attention` and `compared` have tables [heads, t, t or e] for each layer."""
    tables = {layer: torch.as_tensor(table) for layer, table in (attention or {}).items()}
    length = len(next(iter(tables.values()))[0]) if states is None else len(states)
    if states is None:
        states = torch.arange(length, dtype=torch.float32)[:, None]
    return Tile(
        states[int(has_class) :] if features is None else features,
        states,
        has_class,
        layers,
        lambda layer, queries: tables[layer][:, queries],
        lambda layer: compared[layer],
    )


def inside(states, *, layer, seen=None, patches=None, side=None, row=0, layers=23, seed=0):  # noqa: PLR0913
    """Patches between two layers of a tower."""
    patches = len(states) if patches is None else patches
    side = (1, patches) if side is None else side
    generator = torch.Generator().manual_seed(seed)
    return Inside(layer, layers, states, patches, side, seen, row, generator)


def only_last(*rows, length):
    """A table in which the last token alone attends to anything: one row for each head."""
    table = torch.zeros(len(rows), length, length)
    table[:, -1] = torch.tensor(rows)
    return table
