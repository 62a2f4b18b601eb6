"""Train the embedded demo model: a small LLaVA that answers questions about drawn scenes.

    python scripts/demo/make_demo.py tower --work WORK --minutes 9 --batch 32 --tower-rate 1.5e-3
    python scripts/demo/make_demo.py answers --work WORK --minutes 28
    python scripts/demo/make_demo.py measure --work WORK

Two phases train one model, without data on disk: scenes are endless.

* tower: tower, projector and the embeddings learn what each patch shows: the kind of emoji that
  covers it, where that emoji's centre is, whether the patch holds it, and the patch's own row and
  column. Without this start the language model finds colours and little else.
* answers: the whole model learns to answer. The questions about a scene are packed behind one copy
  of its picture: each sees the picture and itself, at the positions it would have alone, so packed
  logits are those of separate prompts. Two more turns list the scene. Each kind's word starts at
  what the tower makes of that kind (`name_words`), and some heads start by looking for likeness
  (`look_alike`): without these the words find their patches only after many hundred steps.

Each phase runs until its minutes are used, at a rate that falls to zero, in `--workers` processes
of one thread that average their gradients; WORK/checkpoint is saved every few minutes. So results
depend on the speed of the machine; WORK/make_demo.log says how many steps were taken. `measure`
asks 2,000 test questions through `generate`, with and without the picture: WORK/make_demo.json.
"""

import argparse
import collections
import itertools
import json
import math
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional

from victorctl.data import scenes

GRID = 10  # patches along one side
PATCH = scenes.SIDE // GRID
VISUAL = GRID * GRID
BINS = scenes.SIDE // 4  # an object's centre is told to 4 pixels
IGNORE = -100
Llava = transformers.LlavaForConditionalGeneration
PREFIX = VISUAL + 2  # <s> USER: and the picture
SHORT, LONG = (14, 11), (2, 25)  # segments of a packed row, tokens in each: questions, listings
LENGTH = PREFIX + math.prod(SHORT) + math.prod(LONG)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    "USER: ASSISTANT: ? , is are there a an the in of how many things what where left right top "
    "bottom middle centre above below yes no list everything from to with its place 0 1 2 3 4 5"
)
TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if content is string -%}
{%- set content = [{'type': 'text', 'text': content}] -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{- 'ASSISTANT: ' -}}
{%- generation -%}
{%- for part in content -%}{{- part['text'] -}}{%- endfor -%}
{{- '</s>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message['role'].upper() + ': ' -}}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{{- '<image>\n' -}}
{%- else -%}
{{- part['text'] + ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def make_processor() -> transformers.LlavaProcessor:
    """Build the word tokenizer, the chat template and the CLIP picture settings."""
    words = [*SPECIAL, *WORDS.split(), *scenes.KINDS, *scenes.PLURALS.values()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"[A-Z]+:|\w+|[^\w\s]")
    core.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    side = {"height": scenes.SIDE, "width": scenes.SIDE}
    pictures = transformers.CLIPImageProcessorPil(
        size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return transformers.LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def make_model(processor: transformers.LlavaProcessor) -> Llava:
    """Build the untrained model; it starts with larger weights than the usual 0.02."""
    tokenizer = processor.tokenizer
    tower = transformers.CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=scenes.SIDE,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL,
        tie_word_embeddings=False,
    )
    model = Llava(config)
    deep = (2 * text.num_hidden_layers) ** -0.5
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "position" not in name:
            scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)
    nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    look_alike(model.model.language_model)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


@torch.no_grad()
def look_alike(text: nn.Module, layers: int = 3, heads: int = 2, scale: float = 1.3) -> None:
    """Start some heads of the first layers so that a token attends to tokens like it.

    Key weights equal query weights there, and are zero in the quickly rotating dimensions, where
    distance would hide the likeness. So "cat" finds the patches of the cat from the first step;
    by chance alone the heads that look up a word's patches take hundreds of steps to form.
    """
    size = text.config.head_dim
    slow = torch.arange(size) % (size // 2) >= size // 5
    for layer in text.layers[:layers]:
        attention = layer.self_attn
        query = attention.q_proj.weight[: heads * size]
        query *= scale * slow.repeat(heads)[:, None]
        attention.k_proj.weight[: heads * size] = query


def listings(scene: scenes.Scene) -> list[tuple[str, str]]:
    """Write the two dense turns: everything from left to right with its place, and downwards."""
    across, down = [], []
    for item in sorted(scene.objects, key=lambda item: item.x):
        row, column = (min(3 * value // scenes.SIDE, 2) for value in (item.y, item.x))
        across.append(f"{item.kind} {scenes.PLACES[row][column]}")
    for item in sorted(scene.objects, key=lambda item: item.y):
        down.append(item.kind)
    return [
        ("list left to right", ", ".join(across)),
        ("list top to bottom", ", ".join(down)),
    ]


SHARES = {"relation": 3, "where": 3, "what": 3, "compare": 3, "count": 3, "exists": 2}


def training_questions(scene: scenes.Scene) -> list[scenes.Question]:
    """Choose as many questions as a row holds, more of the hard types than the scene's own mix."""
    asked = scene.questions(60)
    chosen = []
    for name, share in SHARES.items():
        chosen += [question for question in asked if question.type == name][:share]
    rest = [question for question in asked if question not in chosen]
    return (chosen + rest)[: SHORT[0]]


class Packer:
    """Turns scenes into packed rows of `LENGTH` tokens.

    A row is `<s> USER: <image> x 100`, then segments of fixed size, right-padded, each one turn:
    question, `ASSISTANT:`, answer, `</s>`.
    """

    def __init__(self, processor: transformers.LlavaProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self.prefix = self.ids("<s>USER: " + "<image>" * VISUAL)
        self.kinds = self.ids(" ".join(scenes.KINDS))

    def ids(self, text: str) -> list[int]:
        """Tokenise without the leading `<s>`."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def row(self, scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray]:
        """Pack one scene: ids and labels, both [LENGTH]; a label stands where it is predicted."""
        turns = [(q.text, q.answer, SHORT[1]) for q in training_questions(scene)]
        turns += [(*turn, LONG[1]) for turn in listings(scene)]
        text = " ".join(f"{question} ASSISTANT: {answer}</s>" for question, answer, _ in turns)
        tokens = iter(self.ids(text))
        told, end = self.ids("ASSISTANT: </s>")
        ids = np.full(LENGTH, self.tokenizer.pad_token_id)
        labels = np.full(LENGTH, IGNORE)
        ids[:PREFIX] = self.prefix
        start = PREFIX
        for *_, size in turns:
            segment = [*itertools.takewhile(lambda token: token != end, tokens), end]
            if len(segment) <= size:
                first = segment.index(told)
                ids[start : start + len(segment)] = segment
                labels[start + first : start + len(segment) - 1] = segment[first + 1 :]
            start += size
        return ids, labels


def positions() -> Tensor:
    """Number the tokens of a packed row as each prompt alone would have them: [LENGTH]."""
    parts = [torch.arange(PREFIX)]
    for count, size in (SHORT, LONG):
        parts.append(PREFIX + torch.arange(size).repeat(count))
    return torch.cat(parts)


def packed_attention(  # noqa: PLR0913  (the signature is transformers')
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as separate prompts would: a segment sees the prefix and, causally, itself.

    Shapes: b rows, h heads, n = LENGTH tokens, d head width.
    """
    before = [part[:, :, :PREFIX] for part in (query, key, value)]
    results = [functional.scaled_dot_product_attention(*before, is_causal=True, scale=scaling)]
    start = PREFIX
    for count, size in (SHORT, LONG):
        span = slice(start, start + count * size)
        start = span.stop
        q, k, v = (part[:, :, span].unflatten(2, (count, size)) for part in (query, key, value))
        later = torch.ones(size, size, dtype=torch.bool).triu(1)
        own = (q @ k.mT * scaling).masked_fill(later, -torch.inf)  # [b, h, count, size, size]
        seen = (query[:, :, span] @ before[1].mT * scaling).unflatten(2, (count, size))
        share = torch.cat([seen, own], -1).softmax(-1)
        seen, own = share.split([PREFIX, size], -1)
        results.append(seen.flatten(2, 3) @ before[2] + (own @ v).flatten(2, 3))
    return torch.cat(results, dim=2).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("packed", packed_attention)


def pixels_of(scene: scenes.Scene) -> np.ndarray:
    """Draw and normalise as the processor does: [3, side, side]."""
    return (np.asarray(scene.picture(), np.float32) / 127.5 - 1).transpose(2, 0, 1)


def patch_targets(scene: scenes.Scene) -> np.ndarray:
    """Tell for each patch: kind (or `len(KINDS)`), bins of the centre's x and y, centre or not.

    Returns:
        Targets [4, 100]; bins are `IGNORE` where no object is.
    """
    targets = np.full((4, GRID, GRID), IGNORE)
    targets[0], targets[3] = len(scenes.KINDS), 0
    middle = (np.arange(GRID) + 0.5) * PATCH
    for item in scene.objects:
        across, down = (np.abs(middle - value) <= item.size / 2 for value in (item.x, item.y))
        covered = down[:, None] & across[None, :]
        bins = item.x * BINS // scenes.SIDE, item.y * BINS // scenes.SIDE
        for plane, value in enumerate((scenes.KINDS.index(item.kind), *bins, 0)):
            targets[plane][covered] = value
    for item in scene.objects:
        targets[3, item.y // PATCH, item.x // PATCH] = 1
    return targets.reshape(4, VISUAL)


class PatchHeads(nn.Module):
    """The heads of the first phase; they read the projected tokens and are thrown away."""

    def __init__(self, width: int, kinds: list[int]) -> None:
        super().__init__()
        self.kinds = kinds
        self.ground = nn.Parameter(torch.randn(1, width))
        self.sizes = [BINS, BINS, 2, GRID, GRID]
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor, words: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Score projected tokens [b, 100, d] against `words` [v, d] and the heads.

        Returns:
            Loss, and the share of covered patches whose kind is right.
        """
        names = torch.cat([words[self.kinds], self.ground])
        kind = tokens @ names.T * tokens.shape[-1] ** -0.5
        place = torch.arange(VISUAL).expand(len(tokens), -1)
        wanted = [*targets[:, 1:].unbind(1), place // GRID, place % GRID]
        loss = functional.cross_entropy(kind.flatten(0, 1), targets[:, 0].flatten())
        for scores, target in zip(self.linear(tokens).split(self.sizes, -1), wanted, strict=True):
            loss = loss + 0.5 * functional.cross_entropy(scores.flatten(0, 1), target.flatten())
        covered = targets[:, 0] < len(scenes.KINDS)
        right = (kind.argmax(-1) == targets[:, 0])[covered].float().mean()
        return loss, right


def visual_tokens(model: Llava, pixels: Tensor) -> Tensor:
    """Run tower and projector: [b, 3, side, side] to [b, 100, d]."""
    return torch.stack(tuple(model.model.get_image_features(pixels).pooler_output))


def packed_logits(model: Llava, tokens: Tensor, ids: Tensor, at: Tensor) -> Tensor:
    """Run packed rows through the language model.

    Shapes: b rows, n = LENGTH tokens, d width, v words.

    Args:
        model: Its language model must be set to attend by `packed_attention`.
        tokens: Visual tokens [b, 100, d]; they stand behind `<s> USER:`.
        ids: Packed tokens [b, n].
        at: Where logits are wanted, bool [b, n].

    Returns:
        Logits [wanted, v].
    """
    embedded = model.get_input_embeddings()(ids)
    embedded = torch.cat([embedded[:, :2], tokens, embedded[:, PREFIX:]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=torch.zeros(1, 1, 1, 1),  # not read: the layout is fixed
        position_ids=positions()[None],
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[at])


@torch.no_grad()
def name_words(model: Llava, packer: Packer) -> None:
    """Start each kind's word, singular and plural, at what the tower makes of its patches.

    That is the mean visual token of the kind's patches, less the mean over all kinds, at the length
    of the other embeddings. With `look_alike` it makes words find their patches.
    """
    drawn = make_batch(packer, range(200), "train")
    tokens = visual_tokens(model, drawn["pixels"])  # [200, 100, d]
    kinds = drawn["targets"][:, 0]
    means = torch.stack([tokens[kinds == kind].mean(0) for kind in range(len(scenes.KINDS))])
    means -= tokens[kinds < len(scenes.KINDS)].mean(0)
    words = model.get_input_embeddings().weight
    means *= words.shape[1] ** 0.5 / means.norm(dim=1, keepdim=True)
    for name in (scenes.KINDS, scenes.PLURALS.values()):
        words[packer.ids(" ".join(name))] = means


def make_batch(packer: Packer, seeds: Sequence[int], split: str) -> dict[str, Tensor]:
    """Draw, pack and label some scenes: pixels, targets, ids, labels."""
    drawn = [scenes.scene(seed, split) for seed in seeds]
    ids, labels = zip(*map(packer.row, drawn), strict=True)
    parts = {
        "pixels": map(pixels_of, drawn),
        "targets": map(patch_targets, drawn),
        "ids": ids,
        "labels": labels,
    }
    return {name: torch.from_numpy(np.stack(list(part))) for name, part in parts.items()}


class Settings(argparse.Namespace):
    """What the command line says."""

    phase: str
    work: Path
    minutes: float
    batch: int
    rate: float
    tower_rate: float
    patch_weight: float
    workers: int
    seed: int
    save_every: float


def rate_at(progress: float, warmup: float = 0.02) -> float:
    """Warm up, then fall to zero as a cosine; `progress` from 0 to 1."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


class Training:
    """One phase in one worker.

    The phase "tower" trains tower, projector and embeddings on the patch targets; "answers" trains
    everything on the answers, and on the patch targets at `patch_weight`.
    """

    def __init__(self, rank: int, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.rank, self.settings = rank, settings
        self.answers = settings.phase == "answers"
        self.processor = make_processor()
        self.packer = Packer(self.processor)
        self.model = make_model(self.processor)
        self.model.set_attn_implementation({"text_config": "packed"})
        self.heads = PatchHeads(self.model.config.text_config.hidden_size, self.packer.kinds)
        self.state = settings.work / "state.pt"
        self.seen = self.load() if self.state.exists() else 0
        self.optimizer = self.make_optimizer()
        self.log: collections.Counter[str] = collections.Counter()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Give the seeing and the reading part their own rates."""
        inner = self.model.model
        seeing = [inner.vision_tower, inner.multi_modal_projector, self.heads]
        reading = [inner.language_model, self.model.lm_head]
        reading = reading if self.answers else [self.model.get_input_embeddings()]
        rates = {self.settings.tower_rate: seeing, self.settings.rate: reading}
        groups = [
            {"params": [p for part in parts for p in part.parameters()], "rate": rate}
            for rate, parts in rates.items()
        ]
        self.trained = [p for group in groups for p in group["params"]]
        for p in self.trained:
            p.grad = torch.zeros_like(p)  # the tower's last norm, which nothing reads, keeps it
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def load(self) -> int:
        """Take up what an earlier phase left; returns how many scenes it saw."""
        state = torch.load(self.state)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        if self.answers and state["phase"] == "tower":
            name_words(self.model, self.packer)
        return state["seen"]

    def save(self) -> None:
        """Keep the state for a later phase and, once there are answers, the checkpoint."""
        parts = {"model": self.model.state_dict(), "heads": self.heads.state_dict()}
        torch.save({**parts, "seen": self.seen, "phase": self.settings.phase}, self.state)
        if self.answers:
            accuracy = quick_accuracy(self.model, self.packer, range(150))
            say(self.settings, f"  test scenes, packed: {show(accuracy)}")
            save_checkpoint(self.model, self.processor, self.settings.work / "checkpoint")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Score one batch, and note what the log tells."""
        tokens = visual_tokens(self.model, batch["pixels"])
        words = self.model.get_input_embeddings().weight
        patches, kind = self.heads(tokens, words, batch["targets"])
        self.log.update(steps=1, patch_loss=patches.item(), patch_kind=kind.item())
        if not self.answers:
            return patches
        at = batch["labels"] != IGNORE
        logits = packed_logits(self.model, tokens, batch["ids"], at)
        told = functional.cross_entropy(logits, batch["labels"][at])
        right = (logits.argmax(-1) == batch["labels"][at]).float().mean()
        self.log.update(answer_loss=told.item(), answer_right=right.item())
        return told + self.settings.patch_weight * patches

    def step(self, started: float) -> float:
        """Take one step; returns the progress of the phase, 0 to 1, the same in every worker."""
        share = self.settings.batch // self.settings.workers
        first = self.seen + self.rank * share
        batch = make_batch(self.packer, range(first, first + share), "train")
        self.seen += self.settings.batch
        self.optimizer.zero_grad(set_to_none=False)
        self.loss(batch).backward()
        elapsed = average(self.trained, time.monotonic() - started, self.settings.workers)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        progress = min(elapsed / (60 * self.settings.minutes), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * rate_at(progress)
        self.optimizer.step()
        return progress

    def run(self) -> None:
        """Step until the time is used; worker 0 logs and saves."""
        started = saved = time.monotonic()
        progress = 0.0
        for step in itertools.count(1):
            progress = self.step(started)
            last = progress == 1.0
            if self.rank == 0 and (last or step % 50 == 0):
                self.tell(step, progress)
            if self.rank == 0 and (
                last or time.monotonic() - saved > 60 * self.settings.save_every
            ):
                self.save()
                saved = time.monotonic()
            if last:
                break

    def tell(self, step: int, progress: float) -> None:
        """Log the means since the last time."""
        steps = self.log.pop("steps")
        means = show({name: total / steps for name, total in self.log.items()})
        minutes = progress * self.settings.minutes
        say(self.settings, f"{self.settings.phase} step {step}  {minutes:.1f} min  {means}")
        self.log.clear()


def average(parameters: list[nn.Parameter], elapsed: float, workers: int) -> float:
    """Average the gradients and the elapsed time over all workers, in one message."""
    if workers == 1:
        return elapsed
    flat = torch.cat([torch.tensor([elapsed]), *(p.grad.flatten() for p in parameters)])
    dist.all_reduce(flat)
    flat /= workers
    parts = flat[1:].split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad.copy_(part.view_as(p))
    return flat[0].item()


def work(rank: int, settings: Settings) -> None:
    """Be one worker, on one thread."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if settings.workers > 1:
        meeting = (settings.work / "rendezvous").as_uri()
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.workers)
    Training(rank, settings).run()
    if settings.workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def say(settings: Settings, line: str) -> None:
    """Write a line to the log and the terminal."""
    with (settings.work / "make_demo.log").open("a") as log:
        print(line, file=log)
    print(line, flush=True)


def show(values: dict[str, float]) -> str:
    """Write names and numbers on one line."""
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


def batches(items: Sequence, size: int) -> list[Sequence]:
    """Cut into parts of `size`, the last one smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


@torch.no_grad()
def quick_accuracy(model: Llava, packer: Packer, seeds: range) -> dict[str, float]:
    """Measure per type, from packed rows: an answer counts if all its tokens come first."""
    right, asked = collections.Counter(), collections.Counter()
    for part in batches(seeds, 50):
        batch = make_batch(packer, part, "test")
        tokens = visual_tokens(model, batch["pixels"])
        at = batch["labels"] != IGNORE
        hit = torch.ones_like(at)
        hit[at] = packed_logits(model, tokens, batch["ids"], at).argmax(-1) == batch["labels"][at]
        for row, seed in enumerate(part):
            for number, question in enumerate(training_questions(scenes.scene(seed, "test"))):
                start = PREFIX + number * SHORT[1]
                asked[question.type] += 1
                right[question.type] += hit[row, start : start + SHORT[1]].all().item()
    result = {name: right[name] / asked[name] for name in scenes.TYPES}
    return {**result, "mean": sum(result.values()) / len(result)}


def save_checkpoint(model: Llava, processor: transformers.LlavaProcessor, folder: Path) -> None:
    """Write the checkpoint beside, then put it in place."""
    fresh, old = (folder.with_name(folder.name + end) for end in (".new", ".old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    processor.save_pretrained(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# Measuring: the stock classes and `generate`, as any user would.


def messages(question: scenes.Question, image: bool) -> list[dict]:
    """Write one question as a chat."""
    parts = [{"type": "image"}] * image + [{"type": "text", "text": question.text}]
    return [{"role": "user", "content": parts}]


@torch.no_grad()
def answer(
    model: Llava, processor: transformers.LlavaProcessor, asked: list[tuple], picture: str
) -> list[str]:
    """Answer pairs of scene and question by greedy `generate`.

    The picture is "shown", "grey" or "none".
    """
    answers = []
    grey = Image.new("RGB", (scenes.SIDE, scenes.SIDE), (128, 128, 128))
    for part in batches(asked, 40):
        chats = [messages(question, picture != "none") for _, question in part]
        text = processor.apply_chat_template(chats, add_generation_prompt=True)
        images = [grey if picture == "grey" else scene.picture() for scene, _ in part]
        images = None if picture == "none" else images
        inputs = processor(text=text, images=images, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        told = ids[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(told, skip_special_tokens=True)
    return answers


def guesses(asked: list[tuple], training_scenes: int = 20_000) -> list[str]:
    """Answer by each text's most common answer in training; a new text by its type's."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for seed in range(training_scenes):
        for question in scenes.scene(seed, "train").questions(4):
            counts[question.text][question.answer] += 1
            counts[question.type][question.answer] += 1
    known = [counts.get(q.text) or counts[q.type] for _, q in asked]
    return [count.most_common(1)[0][0] for count in known]


def accuracy(asked: list[tuple], answers: list[str]) -> dict[str, float]:
    """Share of exact answers per type, and of all."""
    hits = collections.defaultdict(list)
    for (_, question), told in zip(asked, answers, strict=True):
        hits[question.type].append(told == question.answer)
        hits["all"].append(told == question.answer)
    return {name: sum(hits[name]) / len(hits[name]) for name in (*scenes.TYPES, "all")}


@torch.no_grad()
def packing_error(model: Llava, processor: transformers.LlavaProcessor) -> float:
    """Compare packed logits with those of separate prompts; returns the largest difference."""
    packer, scene, worst, start = Packer(processor), scenes.scene(0, "test"), 0.0, 0
    batch = make_batch(packer, range(1), "test")
    model.set_attn_implementation({"text_config": "packed"})
    tokens = visual_tokens(model, batch["pixels"])
    packed = packed_logits(model, tokens, batch["ids"], batch["labels"] != IGNORE)
    model.set_attn_implementation({"text_config": "sdpa"})
    for question in training_questions(scene):
        chat = messages(question, image=True)
        chat.append({"role": "assistant", "content": question.answer})
        text = processor.apply_chat_template(chat)
        alone = model(**processor(text=text, images=scene.picture(), return_tensors="pt")).logits[0]
        size = len(packer.ids(question.answer)) + 1  # and </s>
        difference = alone[-size - 1 : -1] - packed[start : start + size]
        worst = max(worst, difference.abs().max().item())
        start += size
    return worst


def measure(settings: Settings, count: int = 500) -> None:
    """Load the checkpoint as a user would, ask `count` test scenes 4 questions each, and tell."""
    folder = settings.work / "checkpoint"
    torch.set_num_threads(settings.workers)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True
    )
    drawn = [scenes.scene(seed, "test") for seed in range(count)]
    asked = [(scene, question) for scene in drawn for question in scene.questions(4)]
    started = time.monotonic()
    results = {"with the picture": accuracy(asked, answer(model, processor, asked, "shown"))}
    seconds = time.monotonic() - started
    results["grey picture"] = accuracy(asked, answer(model, processor, asked, "grey"))
    results["no picture"] = accuracy(asked, answer(model, processor, asked, "none"))
    results["most common answer"] = accuracy(asked, guesses(asked))
    numbers = {
        "questions": len(asked),
        "questions_by_type": collections.Counter(question.type for _, question in asked),
        "accuracy": results,
        "seconds": round(seconds, 1),
        "loading_report": {name: sorted(map(str, found)) for name, found in report.items()},
        "packed_against_separate": packing_error(model, processor),
        "parameters": model.num_parameters(),
        "scenes_seen": torch.load(settings.work / "state.pt")["seen"],
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (settings.work / "make_demo.json").write_text(json.dumps(numbers, indent=2) + "\n")
    say(settings, f"{'':20}" + "".join(f"{name:>10}" for name in (*scenes.TYPES, "all")))
    for name, row in results.items():
        say(settings, f"{name:20}" + "".join(f"{value:10.3f}" for value in row.values()))


def main() -> None:
    """Run one phase."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("phase", choices=["tower", "answers", "measure"])
    parser.add_argument("--work", type=Path, required=True, help="folder for state and checkpoint")
    parser.add_argument("--minutes", type=float, default=28)
    parser.add_argument("--batch", type=int, default=16, help="scenes in one step")
    parser.add_argument("--rate", type=float, default=2e-3, help="of the language model")
    parser.add_argument("--tower-rate", type=float, default=3e-4)
    parser.add_argument("--patch-weight", type=float, default=0.2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=2.5, help="minutes")
    settings = parser.parse_args(namespace=Settings())
    settings.work.mkdir(parents=True, exist_ok=True)
    (settings.work / "rendezvous").unlink(missing_ok=True)
    chosen = (f"{name} {value}" for name, value in vars(settings).items() if name != "work")
    say(settings, "# " + "  ".join(chosen))
    if settings.phase == "measure":
        measure(settings)
    elif settings.workers == 1:
        work(0, settings)
    else:
        torch.multiprocessing.spawn(work, (settings,), nprocs=settings.workers)


if __name__ == "__main__":
    main()
