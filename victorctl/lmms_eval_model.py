"""A Victor folder as a model of lmms-eval; importing this file needs lmms-eval.

    lmms_eval --model victor --model_args pretrained=victor-7b-trained --tasks pope

Source: lmms-eval 0.7.3, api/model.py and models/chat/, for what it asks of a model.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from transformers import GenerationConfig

from victorctl import checkpoint
from victorctl.answering import Contestant, Greedy
from victorctl.contestants import find_base, load_shipped
from victorctl.data.batches import padding_token
from victorctl.data.conversations import Conversation, Row
from victorctl.data.formats import MARKER, Message
from victorctl.errors import VictorError
from victorctl.questions import Question, prepare
from victorctl.recipe import Run
from victorctl.runtime import progress

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}  # as others call them
LONGEST = 1024  # tokens of an answer where the task says nothing, as in lmms-eval's LLaVA


@dataclass(frozen=True)
class Wanted:
    """What a task wants of an answer.

    Args:
        longest: Tokens, at most.
        until: Texts, the first of which ends it.
        temperature: 0 for the likeliest tokens.
        top_p: Share of the likeliest tokens that are drawn from.
        top_k: Number of them.
        beams: Answers that are followed at once.
    """

    longest: int
    until: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int
    beams: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Wanted":
        """Read a task's `generation_kwargs`; what is drawn from counts only where it draws."""
        until = settings.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        drawn = (settings.get("do_sample") is not False and settings.get("temperature")) or 0
        return cls(
            longest=int(settings.get("max_new_tokens") or LONGEST),
            until=tuple(text for text in until if text),
            temperature=float(drawn),
            top_p=float(settings.get("top_p") or 1) if drawn else 1.0,
            top_k=int(settings.get("top_k") or 50) if drawn else 50,
            beams=int(settings.get("num_beams") or 1),
        )

    def settings(self, greedy: Greedy) -> GenerationConfig:
        """Tell transformers all of it, as it would take what is left open from the model's own."""
        return GenerationConfig(
            max_new_tokens=self.longest,
            eos_token_id=list(greedy.stop),
            pad_token_id=padding_token(greedy.processor),
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            top_p=self.top_p,
            top_k=self.top_k,
            num_beams=self.beams,
            repetition_penalty=1.0,
        )

    def cut(self, text: str) -> str:
        """End an answer where the task says."""
        places = [text.find(end) for end in self.until if end in text]
        return text[: min(places)] if places else text


class Victor(lmms):
    """A Victor model, or its unconverted base, answering chats.

    Args:
        pretrained: Folder that `victorctl convert`, `finetune` or `pull` wrote.
        registers: Use so many alone, of a model trained with `train.elastic`; None for all.
        base: Be the unconverted model instead.
        dtype: auto, bf16, fp16 or fp32, also by their long names.
        device: auto, cpu, cuda or cuda:N; of several processes each takes its own.
        attn: sdpa or eager.
        batch_size: Questions answered at once.
        max_batch_size: Taken and not used: batches have one size.
    """

    is_simple = False

    def __init__(  # noqa: PLR0913 (an argument for each word of --model_args)
        self,
        pretrained: str,
        *,
        registers: int | None = None,
        base: bool = False,
        dtype: str = Run.dtype,
        device: str = Run.device,
        attn: str = Run.attn,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.batch_size = _size(batch_size)
        folder = Path(str(pretrained))
        place = device if self._world_size == 1 else _name(self.accelerator.device)
        run = Run(device=place, dtype=DTYPES.get(dtype, dtype), attn=attn, quiet=self._rank > 0)
        self.model = load_shipped(folder, run, registers)
        self._who = Contestant(self.model, lambda _rows: nullcontext())
        if base:
            found = find_base(folder, self.model, run)
            self.model, self._who = found.model, found.contestant()
        self._greedy = Greedy.of(self.model, checkpoint.load_processor(folder))

    @property
    def _marks(self) -> tuple[str, ...]:
        """Texts that stand for pictures, which a task's prompt may hold beside its pictures."""
        processor = self._greedy.processor
        token = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
        return MARKER, processor.image_token, token

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.model.device

    def clean(self) -> None:
        """Give the memory back, as lmms-eval asks for before its judges come."""
        del self._who
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer chats, in batches of those that want the same and are of like length.

        Raises:
            VictorError: For a video or a sound.
        """
        found: dict[int, GenerationResult] = {}
        spent, written = 0.0, 0
        with progress("answers", len(requests), quiet=self._rank > 0) as bar:
            for wanted, numbers in _batches(requests, self.batch_size):
                chats = [self._chat(requests[number]) for number in numbers]
                start = time.perf_counter()
                answers = self._answer(chats, wanted)
                spent += time.perf_counter() - start
                written += sum(answer.token_counts.output_tokens for answer in answers)
                found |= zip(numbers, answers, strict=True)
                bar.advance(len(numbers))
        speed = written / spent if spent else 0.0
        log_metrics(spent, written, speed, {"rank": self._rank})
        return [found[number] for number in range(len(requests))]

    def _chat(self, request: Instance) -> Question:
        """Ask a task for its messages, with pictures that are open."""
        _, messages, _, number, task, split = request.args
        images: list[Any] = []
        asked = messages(self.task_dict[task][split][number])
        turns = [_turn(turn, images, self._marks) for turn in asked]
        said = Conversation((*turns, {"role": "assistant", "content": []}))
        return Question(
            f"{task} {number}", 0, Row(f"{task} {number}", tuple(images), (said,)), said
        )

    @torch.inference_mode()
    def _answer(self, chats: Sequence[Question], wanted: Wanted) -> list[GenerationResult]:
        prompts = prepare(chats, self._greedy.processor, pictures=True)
        inputs = prompts.for_model(self.model)
        settings = wanted.settings(self._greedy)
        with self._who.acting(prompts.rows):
            output = self.model.generate(**inputs, generation_config=settings)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = [wanted.cut(text) for text in self._greedy.read(new)]
        counts = map(self._count, new.tolist())
        return [
            GenerationResult(text, TokenCounts(output_tokens=count))
            for text, count in zip(texts, counts, strict=True)
        ]

    def _count(self, tokens: Sequence[int]) -> int:
        """Count an answer's tokens, the one that ends it among them, and not what fills it up."""
        ends = (place for place, token in enumerate(tokens, start=1) if token in self._greedy.stop)
        return next(ends, len(tokens))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not for chats: lmms-eval lets them only generate."""
        raise NotImplementedError(f"victor generates; {len(requests)} requests are for likelihoods")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not for chats of several rounds, in which later questions depend on answers."""
        raise NotImplementedError(
            f"victor answers one round; {len(requests)} requests are for more"
        )


def _batches(requests: Sequence[Instance], size: int) -> Iterator[tuple[Wanted, list[int]]]:
    """Put the numbers of requests that want the same and are of like length together."""
    groups: dict[Wanted, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(Wanted.of(request.args[2]), []).append(number)
    for wanted, numbers in groups.items():
        numbers.sort(key=lambda number: len(requests[number].args[0]))
        for start in range(0, len(numbers), size):
            yield wanted, numbers[start : start + size]


def _turn(turn: Mapping[str, Any], images: list[Any], marks: Sequence[str]) -> Message:
    """Turn a message of lmms-eval's into one of ours, and collect its pictures."""
    content = turn["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": turn["role"], "content": [_part(part, images, marks) for part in parts]}


def _part(part: Mapping[str, Any], images: list[Any], marks: Sequence[str]) -> dict[str, str]:
    """Take a picture out of a part, and out of a text what stands for one."""
    if part["type"] == "text":
        text = part["text"]
        for mark in marks:
            text = text.replace(mark, "")
        return {"type": "text", "text": text}
    if part["type"] != "image":
        raise VictorError(
            f"the task shows a model {part['type']}s, and victor reads pictures here",
            fix="leave that task out",
        )
    images.append(Path(part["url"]) if isinstance(part["url"], str) else part["url"])
    return {"type": "image"}


def _size(given: int | str) -> int:
    """Read a batch size."""
    if not str(given).isdecimal() or int(given) < 1:
        raise VictorError(f"--batch_size {given}: not a number of questions", fix="use a number")
    return int(given)


def _name(device: torch.device) -> str:
    """Name a device; CPUs have no numbers."""
    return "cpu" if device.type == "cpu" else str(device)
