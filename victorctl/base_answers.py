"""What unconverted models answered, on disk: a base is asked once, whatever is compared with it."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.constants import HF_HOME

from victorctl.files import append_lines
from victorctl.runtime import say

FORM = 1  # of the lines
DIGITS = 6  # of log-probabilities


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
    folder is named after all else that the answers depend on. Where it cannot be used, that is
    said, and the base is asked as if nothing were known.

    Args:
        settings: What they depend on: weights, configuration, number format, longest answer, ...
        root: Where the folders lie; by default beside the Hub's cache.
        quiet: Do not say what goes wrong.
    """

    def __init__(
        self, settings: Mapping[str, Any], root: Path | None = None, *, quiet: bool = False
    ) -> None:
        named = json.dumps({"form": FORM, **settings}, sort_keys=True)
        root = Path(HF_HOME) / "victorctl" / "base" if root is None else root
        self.folder = root / hashlib.sha256(named.encode()).hexdigest()[:32]
        self._quiet, self._usable = quiet, True
        self._lines: dict[str, str] = {}
        self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        with self._trying():
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(self.folder.glob("*.jsonl")):
                for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                    self._lines[line[2 : line.find('"', 2)]] = line

    def find(self, key: str) -> BaseAnswer | None:
        """Look a question up; what a kill has cut short is not known."""
        try:
            _, text, first = json.loads(self._lines.get(key, ""))
        except ValueError:
            return None
        return BaseAnswer(text, First(*first))

    def add(self, answers: Iterable[tuple[str, BaseAnswer]]) -> None:
        """Write answers down, by question."""
        fresh = {key: [key, *answer] for key, answer in answers}
        self._lines |= {key: json.dumps(entry) for key, entry in fresh.items()}
        if self._usable:
            with self._trying():
                append_lines(self._file, fresh.values())

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Go on without the disk where it does not do."""
        try:
            yield
        except OSError as error:
            self._usable = False
            lost = f"warning: {self.folder}: {error.strerror}; the base's answers are not kept"
            say(lost, quiet=self._quiet)
