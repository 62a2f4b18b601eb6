"""The ladder of training: what each rung trains, added to the model where it lacks it."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from victorctl.errors import VictorError
from victorctl.sections import MERGED, TrainSection

VICTOR = "victor."  # begins the names of parameters that a conversion or a rung adds
VECTORS = ("victor.registers.", "victor.offsets.")  # parameters that are states of registers
TOWERS = ("vision_tower", "vision_model", "image_tower", "video_tower")


def choose_parameters(model: PreTrainedModel, settings: TrainSection) -> dict[str, nn.Parameter]:
    """Freeze the model but for what the rung trains, adding to it what the rung has and it lacks.

    What is trained is kept in float32, whatever the weights are.

    Returns:
        Name to parameter.
    """
    model.requires_grad_(False)
    text, victor = model.get_decoder(), model.victor
    alpha = settings.rank if settings.alpha is None else settings.alpha
    if settings.kind == "deep":
        _deepen(model)
        victor.offsets.requires_grad_(True)
    elif settings.kind == "register-lora":
        _adapt(model, {"rank": settings.rank, "alpha": alpha, "layers": settings.layers})
        victor.adapters.requires_grad_(True)
    elif settings.kind in MERGED:
        _update(model, settings, alpha)
    elif settings.kind == "full":
        text.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        victor.requires_grad_(False)
    if settings.with_projector:
        for value in projector(model).values():
            value.requires_grad_(True)
    victor.registers.requires_grad_(True)
    own = {key: value for key, value in model.config.victor.items() if key != "elastic"}
    model.config.victor = own | ({"elastic": True} if settings.elastic else {})
    chosen = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in chosen.values():
        value.data = value.data.float()
    return chosen


def projector(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Find what leads from the vision tower to the language model, marks of rows' ends included.

    Returns:
        Name to parameter.
    """
    others = [model.victor, model.get_decoder(), model.lm_head]
    others += [getattr(model.model, name) for name in TOWERS if hasattr(model.model, name)]
    taken = {id(value) for module in others for value in module.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) not in taken}


def base_parameters(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Choose those of the trained parameters that are the base's own weights."""
    return {
        name: value
        for name, value in parameters.items()
        if not name.startswith(VICTOR) and "lora_" not in name
    }


def _update(model: PreTrainedModel, settings: TrainSection, alpha: float) -> None:
    """Give the linear maps of the text model's layers low-rank updates at every position."""
    text = model.get_decoder()
    count = model.victor.drop_layer if settings.kind == "lora-early" else len(text.layers)
    targets = [
        f"layers.{index}.{name}"
        for index in range(count)
        for name, module in text.layers[index].named_modules()
        if isinstance(module, nn.Linear)
    ]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        target_modules=targets,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
    )
    inject_adapter_in_model(config, text)
    if settings.dora:
        _check_lengths(text)


def _check_lengths(text: nn.Module) -> None:
    """Refuse DoRA where it would divide by zero."""
    for name, value in text.named_parameters():
        if "lora_magnitude_vector" in name and not value.all():
            raise VictorError(
                f"{name.partition('.lora_magnitude')[0]}: has rows of zeros, by whose length DoRA "
                "divides",
                fix="leave train.dora out",
            )


def _deepen(model: PreTrainedModel) -> None:
    """Give the model offsets, or go on with those that it has.

    Raises:
        VictorError: If no layer could have any.
    """
    if model.config.victor.get("deep"):
        return
    if model.victor.drop_layer == 1:
        raise VictorError(
            "deep adds offsets before the layers from 1 to drop_layer - 1, and drop_layer is 1",
            fix="use --train registers, or convert with --drop-layer 2 or more",
        )
    model.victor.deepen(model.get_decoder().layers)
    _begin(model, model.victor.offsets)
    model.config.victor = {**model.config.victor, "deep": True}


def _begin(model: PreTrainedModel, added: nn.Module) -> None:
    """Put new modules where the model is, with their first values."""
    added.to(model.device)
    for module in added.modules():
        model._init_weights(module)


def _adapt(model: PreTrainedModel, wanted: dict[str, Any]) -> None:
    """Give the model adapters, or go on with those that it has.

    Raises:
        VictorError: If it has others.
    """
    has = model.config.victor.get("adapter")
    if has and has != wanted:
        raise VictorError(
            f"the model has adapters already, {has}, and the recipe asks for {wanted}",
            fix="set train.rank, train.alpha and train.layers to what it has, or start from a "
            "converted folder",
        )
    if has:
        return
    model.victor.adapt(model.get_decoder().layers, wanted)
    _begin(model, model.victor.adapters)
    model.config.victor = {**model.config.victor, "adapter": wanted}


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], settings: TrainSection
) -> torch.optim.AdamW:
    """Make AdamW with a group for registers, one for the base's weights and one for the rest.

    Each group has a highest rate of its own, `peak`.
    """
    own = settings.register_learning_rate or settings.learning_rate
    vectors = {name: value for name, value in parameters.items() if name.startswith(VECTORS)}
    base = base_parameters(parameters)
    others = {name: parameters[name] for name in parameters.keys() - vectors.keys() - base.keys()}
    rates = (own, settings.base_learning_rate, settings.learning_rate)
    groups = [
        {"params": [group[name] for name in sorted(group)], "peak": rate}
        for group, rate in zip((vectors, base, others), rates, strict=True)
        if group
    ]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
