"""Write a trained model: unchanged shards linked, updates of every position merged into theirs."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from victorctl import checkpoint, folders, weights
from victorctl.modeling_victor import PREFIX, WEIGHTS, read_header, write_config, write_indexes

Changes = dict[Path, dict[str, Callable[[Tensor], Tensor]]]
"""What becomes of stored weights: shard to name to change."""


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
    dtype = network.lm_head.weight.dtype
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
    return sum(file.stat().st_size for file in shards) + own * network.lm_head.weight.itemsize


def _changes(source: Path, network: PreTrainedModel) -> Changes:
    """Say what low-rank updates of every position do to stored weights."""
    stored = {  # a weight's name within the text model, to where it lies
        found[1]: (file, name)
        for file in checkpoint.weight_files(source)
        for name in read_header(file)
        if (found := weights.TEXT_LAYER.search(name))
    }
    changes = defaultdict(dict)
    for module_name, module in network.get_decoder().named_modules():
        if isinstance(module, LoraLayer):
            file, name = stored[f"{module_name}.weight"]
            changes[file][name] = partial(_merge, module)
    return dict(changes)


@torch.no_grad()
def _merge(module: LoraLayer, weight: Tensor) -> Tensor:
    """Add a low-rank update to a weight as stored, which may be finer than what was loaded."""
    (adapter,) = module.active_adapters
    return weight + module.get_delta_weight(adapter).cpu()
