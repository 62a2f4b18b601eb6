"""Low-rank updates by PEFT, merged into the weights block by block while these are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from victorctl import weights
from victorctl.errors import VictorError
from victorctl.layouts.files import ADAPTERS, Store
from victorctl.sources import ADAPTER, read_json
from victorctl.weights import Entry

WRAPPER = "base_model.model."  # that PEFT puts in front of every name
SIDES = ("A", "B")
PLAIN = {  # settings of an adapter that change what it computes, and what they must be
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "use_dora": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_pattern": (None, "", []),
    "alora_invocation_tokens": (None, []),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter's updates, by the name of the weight that they are added to."""

    store: Store
    scales: Mapping[str, float]

    def update(self, name: str, dtype: str) -> Callable[[bytes, int], bytes]:
        """Make what adds the update to some rows of a weight.

        Args:
            name: Original name of the weight.
            dtype: Its number format.
        """
        down, up = (self.store.load(self._part(name, side)) for side in SIDES)  # [r, in], [out, r]

        def add(data: bytes, first: int) -> bytes:
            old = weights.to_tensor(data, dtype).view(-1, down.shape[1]).float()
            new = old + self.scales[name] * (up[first : first + len(old)] @ down)
            return weights.to_bytes(new, dtype)

        return add

    def _part(self, name: str, side: str) -> str:
        return next(part for part in _names(name, side) if part in self.store.entries)

    def check(self, entry: Entry) -> None:
        """Refuse an update that does not fit its weight.

        Raises:
            VictorError: If its shape is another.
        """
        down, up = (self.store.entries[self._part(entry.name, side)].shape for side in SIDES)
        fits = len(down) == len(up) == len(entry.shape) == 2 and down[0] == up[1]
        if not fits or entry.shape != (up[0], down[1]):
            raise VictorError(
                f"{self.store.file}: the update of {entry.name} does not fit the weight of the "
                "base model",
                fix="add --base SOURCE with the language model that it was trained on",
            )


def check_plain_lora(folder: Path) -> dict[str, Any]:
    """Read an adapter's settings.

    Raises:
        VictorError: If it is of another kind.
    """
    settings = read_json(folder / ADAPTER) or {}
    for key, allowed in PLAIN.items():
        if settings.get(key) not in allowed:
            raise VictorError(
                f"{folder / ADAPTER}: {key} {settings.get(key)!r} is not a plain LoRA's",
                fix="merge it with LLaVA's own scripts/merge_lora_weights.py, and convert the "
                "merged model",
            )
    if type(settings.get("lora_alpha", 8)) not in (int, float):
        raise VictorError(
            f"{folder / ADAPTER}: lora_alpha {settings['lora_alpha']!r} is no number",
            fix="correct the file, or use another copy of the model",
        )
    return settings


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's settings and the names of its updates.

    Raises:
        VictorError: If it is of another kind, or half of an update is missing.
    """
    settings = check_plain_lora(folder)
    files = [folder / name for name in ADAPTERS if (folder / name).is_file()]
    if not files:
        problem = f"{folder}: neither {' nor '.join(ADAPTERS)}"
        raise VictorError(problem, fix=weights.AGAIN)
    store = Store(files[0])
    _check_filled(store)
    return Adapter(store, _scales(store, settings))


def _check_filled(store: Store) -> None:
    """Refuse an adapter that holds nothing, or tensors that hold nothing.

    Source: microsoft/DeepSpeed, ZeRO stage 3: a state that was not gathered has empty tensors.
    """
    empty = [name for name, entry in store.entries.items() if not entry.count]
    if empty or not store.entries:
        what = f"tensor {min(empty)} is empty" if empty else "no tensor in it"
        raise VictorError(
            f"{store.file}: {what}: it was saved without gathering its parts (DeepSpeed ZeRO-3)",
            fix="save it again with stage3_gather_16bit_weights_on_model_save, or use another copy",
        )


def _scales(store: Store, settings: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for part, entry in store.entries.items():
        name, side = _target(part, store.file)
        if any(other in store.entries for other in _names(name, SIDES[side == "A"])):
            rank = entry.shape[0] if side == "A" else entry.shape[-1]
            if settings.get("r", rank) != rank:
                raise VictorError(
                    f"{store.file}: {part} has rank {rank}, and {ADAPTER} says {settings['r']!r}",
                    fix="use a copy whose weights and settings belong together",
                )
            alpha = settings.get("lora_alpha", 8)
            found[name] = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
        else:
            raise VictorError(f"{store.file}: {part} has no other half", fix=weights.AGAIN)
    return found


def _names(name: str, side: str) -> list[str]:
    """Say what one side of a weight's update is called, by new and old versions of PEFT."""
    module = name.removesuffix(".weight")
    return [f"{WRAPPER}{module}.lora_{side}{tag}.weight" for tag in ("", ".default")]


def _target(part: str, file: Path) -> tuple[str, str]:
    for side in SIDES:
        for tag in ("", ".default"):
            end = f".lora_{side}{tag}.weight"
            if part.startswith(WRAPPER) and part.endswith(end):
                return part.removeprefix(WRAPPER).removesuffix(end) + ".weight", side
    raise VictorError(
        f"{file}: tensor {part} is no part of a LoRA",
        fix="merge it with LLaVA's own scripts/merge_lora_weights.py, and convert the merged model",
    )
