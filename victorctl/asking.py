"""The same questions to everybody, in batches that processes share and that kills interrupt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from victorctl.ahead import ahead
from victorctl.answering import BASE, MODEL, Beginning, Contestant, Greedy, Shared
from victorctl.base_answers import BaseAnswer, BaseAnswers
from victorctl.data.formats import BadRow
from victorctl.errors import VictorError
from victorctl.notebook import Entry, Notebook
from victorctl.processes import Processes
from victorctl.questions import Question, Size, batches
from victorctl.runtime import Counter, progress


@dataclass(frozen=True)
class Answers:
    """What was answered, in the order of the data.

    Args:
        texts: Answers of each contestant, by its name.
        sizes: Of each question, with its pictures.
        divergences: Of the model's first tokens from the base's; None without both.
        cached: How many of the base's answers were known before.
        entered: Visual tokens that entered each layer, of each contestant that tells.
    """

    texts: dict[str, list[str]]
    sizes: list[Size]
    divergences: list[float] | None = None
    cached: int = 0
    entered: dict[str, list[list[int]]] = field(default_factory=dict)


@contextmanager
def opening() -> Iterator[None]:
    """Let a picture that cannot be read be an error that says how an evaluation goes on."""
    try:
        yield
    except BadRow as error:
        fix = "replace it with a picture and add --resume, or remove its row"
        raise VictorError(error.problem, fix=fix) from error


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how.

    Args:
        contestants: By name; the base before whoever is compared with it.
        greedy: Generates.
        batch_size: Questions answered at once.
        longest: Tokens of the longest answer.
        known: What the base answered before, if that is kept.
        processes: All that ask.
        quiet: Show no progress.
    """

    contestants: Mapping[str, Contestant]
    greedy: Greedy
    batch_size: int
    longest: int
    known: BaseAnswers | None = None
    processes: Processes = field(default_factory=Processes)
    quiet: bool = False

    def ask(self, asked: Sequence[Question]) -> Answers:
        """Put all questions, in this process alone.

        Args:
            asked: In the order of the data.
        """
        entries: dict[int, Entry] = {}
        with progress("answers", len(asked) * len(self.contestants), quiet=self.quiet) as bar:
            for shared in ahead(self._prepare, batches(asked, self.batch_size)):
                entries |= {entry.number: entry for entry in self._answer(shared, bar)}
        return _gather(asked, entries)

    def ask_on(self, task: str, asked: Sequence[Question], notebook: Notebook) -> Answers | None:
        """Put the questions that are not written down yet; processes take batches by turns.

        Batches are the same whatever was answered before and however many processes there are, so
        that the answers are the same, too.

        Args:
            task: What the questions belong to.
            asked: In the order of the data.
            notebook: Where answers are written down.

        Returns:
            Everything that was answered, now or before; None for all processes but the first.
        """
        before = notebook.read(task)
        self.processes.wait()  # until all have read, and before one writes
        cut = list(batches(asked, self.batch_size))
        left = [batch for batch in cut if any(one.number not in before for one in batch)]
        mine = self.processes.share(left)
        ways = len(self.contestants)
        open_, alone = sum(map(len, mine)), self.processes.count == 1
        done = len(asked) - open_ if alone else 0  # of several, each shows its own share
        with progress("answers", (done + open_) * ways, done=done * ways, quiet=self.quiet) as bar:
            for shared in ahead(self._prepare, mine):
                notebook.add(task, self._answer(shared, bar))
        self.processes.wait()
        return _gather(asked, notebook.read(task)) if self.processes.first else None

    def _prepare(self, batch: Sequence[Question]) -> Shared:
        """Open the pictures of a batch."""
        shared = Shared(batch, self.greedy.processor)
        with opening():
            shared.prompts(pictures=True)
        return shared

    def _answer(self, shared: Shared, bar: Counter) -> list[Entry]:
        """Put the questions of a batch to everybody; pictures are seen once."""
        texts: dict[str, list[str]] = {}
        base, divergences, cached = None, None, False
        entered: dict[str, list[list[int]]] = {}
        for name, who in self.contestants.items():
            if name == BASE:
                base, cached = self._ask_base(who, shared)
                texts[name] = [answer.text for answer in base]
            else:
                texts[name], beginning = self._ask(who, shared)
                if name == MODEL and base is not None:
                    divergences = beginning.divergence([answer.first for answer in base])
            if who.entered is not None:
                entered[name] = who.entered()
            bar.advance(len(shared.asked), name)
        sizes = shared.prompts(pictures=True).sizes
        return [
            Entry(
                question.number,
                sizes[place],
                {name: of[place] for name, of in texts.items()},
                None if divergences is None else divergences[place],
                cached,
                {name: of[place] for name, of in entered.items()},
            )
            for place, question in enumerate(shared.asked)
        ]

    def _ask(self, who: Contestant, shared: Shared) -> tuple[list[str], Beginning]:
        rows, watch = shared.prompts(pictures=who.pictures).rows, Beginning()
        inputs = shared.inputs(who)
        written = self.greedy.generate(who, inputs, rows, most=self.longest, watch=watch)
        return self.greedy.read(written), watch

    def _ask_base(self, who: Contestant, shared: Shared) -> tuple[list[BaseAnswer], bool]:
        """Look the base's answers up, and ask it where one is missing."""
        keys = shared.prompts(pictures=True).keys() if self.known else []
        found = [self.known.find(key) for key in keys]
        if found and None not in found:
            return found, True
        texts, beginning = self._ask(who, shared)
        answers = list(map(BaseAnswer, texts, beginning.likeliest()))
        if self.known:
            self.known.add(zip(keys, answers, strict=True))
        return answers, False


def _gather(asked: Sequence[Question], entries: Mapping[int, Entry]) -> Answers:
    """Put entries into the order of the data."""
    ordered = [entries[question.number] for question in asked]
    divergences = [entry.divergence for entry in ordered]
    return Answers(
        {name: [entry.texts[name] for entry in ordered] for name in ordered[0].texts},
        [entry.size for entry in ordered],
        None if None in divergences else divergences,
        sum(entry.cached for entry in ordered),
        {name: [entry.entered[name] for entry in ordered] for name in ordered[0].entered or ()},
    )
