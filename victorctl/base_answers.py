"""What unconverted models answered, on disk: a base is asked once, whatever is compared with it."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.constants import HF_HOME

from victorctl.errors import VictorError
from victorctl.files import append_lines, read_lines
from victorctl.folders import explained

INSTEAD = "add --set eval.base_cache=false, or point HF_HOME to another folder"


class First(NamedTuple):
    """How likely the tokens are that an answer may begin with.

    Args:
        tokens: The likeliest.
        log_probabilities: Theirs.
        rest: Log-probability of all others together.
    """

    tokens: list[int]
    log_probabilities: list[float]
    rest: float


class BaseAnswer(NamedTuple):
    """A base's answer to a question, and how it may have begun."""

    text: str
    first: First


class BaseAnswers:
    """Answers by question, in files that only grow.

    A question is known by its token ids and its pixels, so the answers serve other models that were
    made from the same base, other data with the same question, and other orders and batches. The
    folder is named after all else that the answers depend on.

    Args:
        settings: What they depend on: weights, configuration, number format, longest answer, ...
        root: Where the folders lie; by default beside the Hub's cache.

    Raises:
        VictorError: If the folder cannot be made.
    """

    def __init__(self, settings: Mapping[str, Any], root: Path | None = None) -> None:
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        root = Path(HF_HOME) / "victorctl" / "base" if root is None else root
        self.folder = root / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}"
            raise VictorError(problem, fix=f"{INSTEAD}, where you may write") from error
        self._known: dict[str, BaseAnswer] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for key, text, first in read_lines(file):
                self._known[key] = BaseAnswer(text, First(*first))
        self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"

    def find(self, key: str) -> BaseAnswer | None:
        """Look a question up."""
        return self._known.get(key)

    def add(self, answers: Iterable[tuple[str, BaseAnswer]]) -> None:
        """Write answers down, by question.

        Raises:
            VictorError: If the disk is full.
        """
        fresh = dict(answers)
        with explained(self._file, instead=INSTEAD):
            append_lines(self._file, ([key, *answer] for key, answer in fresh.items()))
        self._known |= fresh
