"""A model in shards, as FSDP2 cuts it, on one process or on two that see other batches."""

import copy
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from tests.victor_models import ALL, inputs, labelled, victor_llava
from victorctl.modeling_victor import LowRank, Offset, Registers

WAYS = {"layers": (), "Victor's own": (Registers, Offset, LowRank)}
"""What is sharded by itself beside every layer of the text model."""

TRAINED = {
    "Victor": ("victor.",),
    "all but tower and projector": ("victor.", "model.language_model.", "lm_head."),
    "all": ("",),
}
"""How names of parameters that are trained begin."""

BATCHES = {"mixed": (("ab#cd", "#e#f"), ("gh",)), "equal": (("ab#cd", "#e#f"),) * 2}
"""What each of two processes sees."""


def trainable(trained: str) -> nn.Module:
    """Build a model of which a part is trained."""
    model = victor_llava(**ALL).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED[trained]))
    return model


def sharded(model: nn.Module, mesh: distributed.DeviceMesh, *, way: str) -> nn.Module:
    """Shard a copy layer by layer, as is usual, and what is left as one."""
    model = copy.deepcopy(model)
    parts = [part for part in model.modules() if isinstance(part, WAYS[way])]
    for part in (*parts, *model.model.language_model.layers, model):
        fully_shard(part, mesh=mesh)
    return model


def loss_and_logits(model: nn.Module, prompts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Ask for every text token of some prompts."""
    output = model.train()(**labelled(inputs(*prompts)))
    return output.loss, output.logits


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from its shards, if it is in any."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def take_step(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Move along the gradients that there are; these, and the parameters after it, by name."""
    given = [(name, each) for name, each in model.named_parameters() if each.grad is not None]
    gradients = {name: whole(each.grad) for name, each in given}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return gradients, {name: whole(each).detach() for name, each in model.named_parameters()}


def train_as_one_of_two(rank: int, folder: Path) -> None:
    """Train a step in every way, on this process' batch; the first writes what came of it."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), 2)
    patience = timedelta(seconds=120)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    found = {}
    for way, trained, batches in every_case():
        model = sharded(trainable(trained), mesh, way=way)
        if trained == "all":  # as for any LLaVA whose tower does not run on every process
            model.set_reduce_scatter_unused_params(True)
        loss_and_logits(model, BATCHES[batches][rank])[0].backward()
        found[way, trained, batches] = take_step(model)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    distributed.destroy_process_group()


def every_case() -> list[tuple[str, str, str]]:
    """List what is sharded, what is trained and what is seen."""
    return [(way, part, batches) for way in WAYS for part in TRAINED for batches in BATCHES]
