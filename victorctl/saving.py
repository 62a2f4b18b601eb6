"""Write a trained model: unchanged shards linked, and what was learned written into the others."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from victorctl import checkpoint, folders, weights
from victorctl.modeling_victor import PREFIX, WEIGHTS, read_header, write_config, write_indexes
from victorctl.rungs import base_parameters

Change = Callable[[Tensor], Tensor]
"""What becomes of a stored weight."""

Changes = dict[Path, dict[str, Change]]
"""Shard to name to change."""


def save(source: Path, folder: Path, network: PreTrainedModel) -> dict[str, str]:
    """Write the trained model: the source's files, but for Victor's tensors and merged weights.

    Shards that do not change are hard links to the source's, and nothing here writes to those.

    Args:
        source: Folder that the model was loaded from.
        folder: A new folder.
        network: The model, with what was trained.

    Returns:
        SHA-256 of every shard, by name.
    """
    changes = _changes(source, network)
    touched = {file.name for file in changes}
    hashes = checkpoint.copy_files(source, folder, link=True, leave_out=touched)
    for file, change in changes.items():
        hashes[file.name] = weights.rewrite_file(file, folder / file.name, change)
    dtype = network.config.dtype
    own = {PREFIX + name: value.to(dtype) for name, value in network.victor.state_dict().items()}
    weights.write_file(folder / WEIGHTS, own, {"format": "pt"})
    write_indexes(folder, hashes)
    write_config(folder, network.config.victor, network.native.__name__, type(network).__name__)
    return hashes


def size(source: Path, out: Path, network: PreTrainedModel) -> int:
    """Count the bytes that `save` will write: Victor's tensors, and shards that cannot be links.

    Args:
        source: Folder that the model was loaded from.
        out: Folder to be written; links reach no other disk.
        network: The model, with what is to be trained.
    """
    changes, linkable = _changes(source, network), folders.on_one_disk(out, [source])
    shards = [file for file in checkpoint.weight_files(source) if file in changes or not linkable]
    own = sum(value.numel() for value in network.victor.parameters())
    return sum(file.stat().st_size for file in shards) + own * network.config.dtype.itemsize


def _changes(source: Path, network: PreTrainedModel) -> Changes:
    """Say what becomes of stored weights: updated at every position, or trained themselves."""
    stored = {name: file for file in checkpoint.weight_files(source) for name in read_header(file)}
    changes = defaultdict(dict)
    for name, change in (_updates(stored, network) | _trained(network)).items():
        if name in stored:  # of weights that are tied, one may be
            changes[stored[name]][name] = change
    return dict(changes)


def _updates(stored: Iterable[str], network: PreTrainedModel) -> dict[str, Change]:
    """Find the stored weights that have low-rank updates."""
    layers = {found[1]: name for name in stored if (found := weights.TEXT_LAYER.search(name))}
    return {
        layers[f"{name}.weight"]: partial(_merge, module)
        for name, module in network.get_decoder().named_modules()
        if isinstance(module, LoraLayer)
    }


def _trained(network: PreTrainedModel) -> dict[str, Change]:
    """Name the base's own weights that were trained as files do."""
    names = base_parameters({name: value for name, value in _all(network) if value.requires_grad})
    if not names:
        return {}
    own = {name: value.detach() for name, value in names.items()}
    return {
        name: partial(_replace, value)
        for name, value in revert_weight_conversion(network, own).items()
    }


def _all(network: PreTrainedModel) -> Iterable[tuple[str, nn.Parameter]]:
    """List the parameters under every name that they have."""
    return network.named_parameters(remove_duplicate=False)


def _replace(value: Tensor, _stored: Tensor) -> Tensor:
    return value.cpu()


@torch.no_grad()
def _merge(module: LoraLayer, weight: Tensor) -> Tensor:
    """Add a low-rank update to a weight as stored, which may be finer than what was loaded."""
    (adapter,) = module.active_adapters
    merged = weight + module.get_delta_weight(adapter).cpu()
    if adapter not in module.lora_magnitude_vector:
        return merged
    lengths = module.lora_magnitude_vector[adapter].weight.cpu()  # DoRA's, of rows [out]
    return merged * (lengths / merged.norm(dim=1))[:, None]
