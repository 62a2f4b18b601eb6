"""The teacher's answers on disk: computed once, found again by what was asked."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from victorctl import weights
from victorctl.data.batches import KEY_BYTES
from victorctl.errors import VictorError
from victorctl.files import whole
from victorctl.folders import explained

FLUSH_AT = 4096  # questions kept in memory before they are written
INSTEAD = "add --set train.teacher_cache=false, or point HF_HOME to another folder"


class Targets(NamedTuple):
    """What the teacher expects at answer positions: its likeliest classes, and how likely they are.

    Both [a, c]. Log-probabilities are over the whole vocabulary, at the temperature of training.
    """

    index: Tensor
    log_probability: Tensor


class Place(NamedTuple):
    """Where a question's targets lie: positions start to stop - 1 of a file."""

    file: Path
    start: int
    stop: int


class TeacherCache:
    """Targets by question, in files that are never changed once they are there.

    A question is known by its token ids, answers and pictures, so the cache survives another order,
    batch size, rung or run. Its folder is named after all else that the targets depend on.

    Args:
        settings: What the targets depend on: weights, kept classes, temperature, number format.
        root: Where the folders lie; by default beside the Hub's cache.

    Raises:
        VictorError: If the folder cannot be made.
    """

    def __init__(self, settings: dict[str, object], root: Path | None = None) -> None:
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        root = Path(HF_HOME) / "victorctl" / "teacher" if root is None else root
        self.folder = root / name
        self.places: dict[bytes, Place] = {}
        self.fresh: dict[bytes, Targets] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}"
            raise VictorError(problem, fix=f"{INSTEAD}, where you may write") from error
        self.look_again()

    def look_again(self) -> None:
        """Learn what lies in the folder by now."""
        known = {place.file for place in self.places.values()}
        for file in sorted(set(self.folder.glob("*.safetensors")) - known):
            with suppress(SafetensorError):  # cut short by a crash: its questions are asked again
                self._index(file)

    def find(self, keys: Sequence[bytes]) -> Targets | None:
        """Look a batch up; None if one of its questions is not known."""
        found = {key: self.fresh[key] for key in keys if key in self.fresh}
        wanted: dict[Path, list[bytes]] = {}
        for key in keys:
            if key in self.places:
                wanted.setdefault(self.places[key].file, []).append(key)
        for file, there in wanted.items():
            with safe_open(file, "pt") as tensors:
                index, values = (tensors.get_slice(name) for name in Targets._fields)
                for key in there:
                    _, start, stop = self.places[key]
                    found[key] = Targets(index[start:stop].long(), values[start:stop])
        if any(key not in found for key in keys):
            return None
        return Targets(*(torch.cat(parts) for parts in zip(*map(found.get, keys), strict=True)))

    def add(self, keys: Sequence[bytes], counts: Sequence[int], targets: Targets) -> Targets:
        """Remember what is new of a batch; what was known stays as it was.

        Args:
            keys: Its questions.
            counts: Answer positions of each.
            targets: Of the whole batch.

        Returns:
            The targets of the batch as `find` gives them from now on.
        """
        parts = (part.cpu().split(list(counts)) for part in targets)
        for key, *pair in zip(keys, *parts, strict=True):
            if key not in self.places:
                self.fresh.setdefault(key, Targets(*pair))
        kept = self.find(keys)
        if len(self.fresh) >= FLUSH_AT:
            self.flush()
        return kept

    def flush(self) -> None:
        """Write what is new; a file appears whole or not at all.

        Raises:
            VictorError: If the disk is full.
        """
        if not self.fresh:
            return
        file = self.folder / f"{uuid.uuid4().hex}.safetensors"
        targets = list(self.fresh.values())
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(self.fresh)), dtype=torch.uint8),
            "counts": torch.tensor([len(target.index) for target in targets]),
            "index": torch.cat([target.index for target in targets]).int(),
            "log_probability": torch.cat([target.log_probability for target in targets]),
        }
        with explained(file, instead=INSTEAD), whole(file) as partial:
            weights.write_file(partial, tensors, {})
        self.fresh = {}
        self._index(file)

    def _index(self, file: Path) -> None:
        with safe_open(file, "pt") as tensors:
            flat = tensors.get_tensor("keys").numpy().tobytes()
            ends = tensors.get_tensor("counts").cumsum(0).tolist()
        for number, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
            key = flat[KEY_BYTES * number : KEY_BYTES * (number + 1)]
            self.places[key] = Place(file, start, stop)
