"""Teach the LLaVA that `build.py` builds to see.

    python scripts/smol/train.py words --work WORK --minutes 8
    python scripts/smol/train.py answers --work WORK --minutes 60
    python scripts/smol/train.py measure --work WORK

Pictures are drawn: the demo's scenes, and single emoji (Noto, Apache-2.0, from the npm package
`emoji-datasource-google`, fetched with `npm pack`) with their names.

* words: without the language model, a projected patch learns to resemble the words for what it
  shows and for where it is: the sum of their token embeddings. So the language model understands
  much before it has seen a single picture.
* answers: the language model learns to answer what is asked about scenes, to list all that a scene
  shows, to name emoji: low-rank updates of all its Linears and, at a tenth of their rate, the
  projector. All questions about a picture share its prefix. With `--projector-alone` the language
  model stays as it is.
* measure: accuracy on questions about unseen scenes, with the picture and without, and the
  perplexity of a page of English: WORK/measured.json.

Each phase runs until its minutes are used, at a rate that falls to zero; `answers` saves every two
minutes. WORK/train.log says how far it came. For `build.py` to use what was learned, copy
WORK/trained.safetensors to trained-SIDE.safetensors beside it.
"""

import argparse
import io
import itertools
import json
import math
import random
import subprocess
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import build
import torch
from peft import PeftModel, get_peft_model_state_dict
from perplexity import perplexity
from PIL import Image
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from victorctl.answering import Contestant, Greedy
from victorctl.asking import Asking
from victorctl.collation import Batch, collate
from victorctl.data import scenes
from victorctl.data.batches import encode, padding_token
from victorctl.data.conversations import Conversation, Row, open_data
from victorctl.exact import is_right
from victorctl.files import write_whole
from victorctl.modeling_victor import CACHE
from victorctl.questions import Question, questions

EMOJI = "emoji-datasource-google@16.0.0"
CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects", "Activities", "Travel & Places")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
GROUND = "nothing"
NAME = "what is this?"
LIST = "what is in the picture?"
QUESTIONS = 6  # about a scene in one step
SAVE_EVERY = 120  # seconds
FILE = "trained.safetensors"


class Emoji(NamedTuple):
    """One picture [64 x 64, RGBA] and its name."""

    name: str
    picture: Image.Image


def load_emoji(cache: Path) -> list[Emoji]:
    """Fetch the emoji unless they are there, and read those that show a thing with a short name."""
    file = cache / (EMOJI.replace("@", "-") + ".tgz")
    if not file.exists():
        subprocess.run(["npm", "pack", "--silent", EMOJI], cwd=cache, check=True)
    with tarfile.open(file) as archive:
        entries = json.load(archive.extractfile("package/emoji.json"))
        named = {
            f"package/img/google/64/{entry['image']}": entry["name"].lower()
            for entry in entries
            if entry["category"] in CATEGORIES and len(entry["name"].split()) <= 3
        }
        found = []
        for member in archive:
            if name := named.get(member.name):
                picture = Image.open(io.BytesIO(archive.extractfile(member).read()))
                found.append(Emoji(name, picture.convert("RGBA")))
    return found


def draw_emoji(emoji: Emoji, rng: random.Random) -> tuple[Image.Image, tuple[int, int, int]]:
    """Draw one emoji somewhere on a plain ground; also its left and upper edge and its size."""
    side = scenes.SIDE
    picture = Image.new("RGB", (side, side), rng.choice(scenes.BACKGROUNDS))
    size = rng.randint(20, side)
    left, upper = (rng.randint(0, side - size) for _ in range(2))
    sprite = emoji.picture.resize((size, size), Image.Resampling.LANCZOS)
    picture.paste(sprite, (left, upper), sprite)
    return picture, (left, upper, size)


def say(question: str, answer: str) -> Conversation:
    """Write one question about a picture with its answer."""
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    told = [{"type": "text", "text": answer}]
    return Conversation(
        ({"role": "user", "content": asked}, {"role": "assistant", "content": told})
    )


def listing(scene: scenes.Scene) -> str:
    """Name all that a scene shows from left to right, each with its place."""
    parts = []
    for item in sorted(scene.objects, key=lambda item: item.x):
        row, column = (min(3 * value // scenes.SIDE, 2) for value in (item.y, item.x))
        article = "an" if item.kind[0] in "aeiou" else "a"
        parts.append(f"{article} {item.kind} in the {scenes.PLACES[row][column]}")
    return ", ".join(parts)


def asking_row(seed: int) -> Row:
    """Ask about a training scene, evenly over the types."""
    scene = scenes.scene(seed, "train")
    asked = random.Random(seed).sample(scene.questions(18), QUESTIONS)
    said = tuple(say(each.text, each.answer) for each in asked)
    return Row(f"scene {seed}", (scene.picture,), said)


def listing_row(seed: int) -> Row:
    """Have a training scene listed: one long answer that says all."""
    scene = scenes.scene(seed, "train")
    return Row(f"scene {seed}", (scene.picture,), (say(LIST, listing(scene)),))


def emoji_row(emoji: Emoji, rng: random.Random) -> Row:
    """Ask what an emoji is."""
    picture, _ = draw_emoji(emoji, rng)
    return Row(emoji.name, (picture,), (say(NAME, emoji.name),))


class Model(NamedTuple):
    """The whole model, the updates of its language model, and what makes its inputs."""

    llava: build.Llava
    updates: PeftModel
    processor: Any

    @property
    def projector(self) -> nn.Module:
        """Tower to language model."""
        return self.llava.model.multi_modal_projector

    @property
    def low_rank(self) -> list[nn.Parameter]:
        """Parameters of the updates."""
        return [weight for name, weight in self.updates.named_parameters() if "lora_" in name]

    @torch.no_grad()
    def states(self, pixels: Tensor) -> Tensor:
        """Run the tower; states of the patches [b, patches, width]."""
        tower = self.llava.model.vision_tower
        hidden = tower(pixels, output_hidden_states=True).hidden_states
        return hidden[build.FEATURES][:, 1:]

    def pixels(self, pictures: list[Image.Image]) -> Tensor:
        """Prepare pictures for the tower [b, 3, side, side]."""
        return self.processor.image_processor(pictures, return_tensors="pt").pixel_values


def load(work: Path, side: int, cache: Path) -> Model:
    """Build the model as far as it has been trained."""
    llava, processor = build.assemble(cache, side)
    llava.requires_grad_(False)
    model = Model(llava, build.low_rank(llava), processor)
    model.projector.requires_grad_(True)
    file = work / FILE
    if file.exists():
        build.read_trained(llava, model.updates, file)
    return model


def save(model: Model, work: Path) -> None:
    """Keep the projector and the updates, in half precision."""
    parts = {
        build.PROJECTOR: model.projector.state_dict(),
        build.LANGUAGE_MODEL: get_peft_model_state_dict(model.updates),
    }
    state = {
        prefix + name: value.half().contiguous()
        for prefix, part in parts.items()
        for name, value in part.items()
    }
    write_whole(work / FILE, serialize(state, metadata={"format": "pt"}))


class Schedule:
    """Time left, the rate that goes with it, and a log.

    Args:
        optimizer: Whose rate is set.
        minutes: Until the rate reaches zero.
        log: File that a line is added to now and then.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, minutes: float, log: Path) -> None:
        self.optimizer, self.log = optimizer, log
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.start, self.length = time.monotonic(), minutes * 60
        self.losses: dict[str, list[float]] = defaultdict(list)
        self.steps = 0

    def __iter__(self) -> Iterator[int]:
        """Count steps until the time is used."""
        while (used := (time.monotonic() - self.start) / self.length) < 1:
            share = min(1, (self.steps + 1) / 20) * 0.5 * (1 + math.cos(math.pi * used))
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * share
            yield self.steps
            self.steps += 1

    def step(self, every: int = 20, **losses: Tensor) -> None:
        """Take an optimiser step on the sum of some losses."""
        sum(losses.values()).backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, value in losses.items():
            self.losses[name].append(value.item())
        if (self.steps + 1) % every == 0:
            means = {name: sum(each) / len(each) for name, each in self.losses.items()}
            told = " ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            minutes = (time.monotonic() - self.start) / 60
            with self.log.open("a") as stream:
                stream.write(f"{minutes:6.1f} min  step {self.steps + 1:5d}  {told}\n")
            self.losses.clear()


# ---- words ---------------------------------------------------------------------------------------


class Lexicon:
    """What words look like to the language model: means of their token embeddings [d]."""

    def __init__(self, model: Model) -> None:
        self.table = model.llava.get_input_embeddings().weight
        self.mean = self.table.mean(dim=0)
        self.tokenizer = model.processor.tokenizer
        self.known: dict[str, Tensor] = {}

    def __getitem__(self, words: str) -> Tensor:
        """Look words up, as they stand after a space."""
        if words not in self.known:
            ids = self.tokenizer(f" {words}", add_special_tokens=False).input_ids
            self.known[words] = self.table[ids].mean(dim=0)
        return self.known[words]


def boxes_of(scene: scenes.Scene) -> list[tuple[str, float, float, float]]:
    """Say what covers which square of a scene: name, left, upper edge and size in pixels."""
    return [(o.kind, o.x - o.size / 2, o.y - o.size / 2, o.size) for o in scene.objects]


def resemble(boxes: list[tuple[str, float, float, float]], side: int, words: Lexicon) -> Tensor:
    """What each patch should resemble: what covers it, and where it is [patches, d]."""
    grid = side // build.PATCH
    cell = scenes.SIDE / grid
    targets = []
    for row, column in itertools.product(range(grid), range(grid)):
        x, y = (column + 0.5) * cell, (row + 0.5) * cell
        names = [
            name
            for name, left, upper, size in boxes
            if left <= x <= left + size and upper <= y <= upper + size
        ]
        place = words[ROWS[3 * row // grid]] + words[COLUMNS[3 * column // grid]]
        targets.append(words[names[-1] if names else GROUND] + 0.5 * place)
    return torch.stack(targets)


def fold(model: Model, states: Tensor) -> None:
    """Let the first Linear standardise the tower's states, so that rates mean the same anywhere."""
    mean, deviation = states.flatten(0, 1).mean(0), states.flatten(0, 1).std(0)
    linear = model.projector.linear_1
    with torch.no_grad():
        linear.weight.normal_(std=linear.in_features**-0.5).div_(deviation)
        linear.bias.copy_(-linear.weight @ mean)


def train_words(model: Model, emoji: list[Emoji], chosen: argparse.Namespace) -> None:
    """Teach patches the words for what they show."""
    rng, words = random.Random(0), Lexicon(model)
    scale = words.table.std()

    def batch(number: int) -> tuple[Tensor, Tensor]:
        pictures, targets = [], []
        for place in range(chosen.batch):
            if place % 2:
                scene = scenes.scene(10**6 + number * chosen.batch + place, "train")
                picture, boxes = scene.picture(), boxes_of(scene)
            else:
                one = rng.choice(emoji)
                picture, box = draw_emoji(one, rng)
                boxes = [(one.name, *box)]
            pictures.append(picture)
            targets.append(resemble(boxes, chosen.side, words))
        return model.states(model.pixels(pictures)), torch.stack(targets)

    fold(model, batch(0)[0])
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = Schedule(optimizer, chosen.minutes, chosen.work / "train.log")
    for number in schedule:
        states, targets = batch(number)
        off = (model.projector(states) - targets) / scale
        schedule.step(words=off.square().mean())
    save(model, chosen.work)


# ---- answers -------------------------------------------------------------------------------------


def answer_loss(model: Model, batch: Batch) -> Tensor:
    """Cross-entropy of the answers; the questions of a picture share its prefix."""
    llava = model.llava
    text, embed = llava.model.language_model, llava.get_input_embeddings()
    features = model.projector(model.states(batch.images["pixel_values"]))
    visual = batch.prefix == llava.config.image_token_id
    prefix = embed(batch.prefix).masked_scatter(visual[..., None], features)
    cache = DynamicCache(config=text.config)
    text(inputs_embeds=prefix, attention_mask=batch.prefix_mask, **{CACHE: cache})
    cache.batch_select_indices(batch.row)
    mask = torch.cat([batch.prefix_mask[batch.row], batch.suffix_mask], dim=1)
    hidden = text(
        inputs_embeds=embed(batch.suffix),
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1)[:, batch.prefix.shape[1] :].clamp(min=0),
        **{CACHE: cache},
    ).last_hidden_state
    return functional.cross_entropy(llava.lm_head(hidden[batch.asked]), batch.answers)


def train_answers(model: Model, emoji: list[Emoji], chosen: argparse.Namespace) -> None:
    """Teach the model to answer questions and, every third step, to list scenes."""
    rng = random.Random(1)
    start = chosen.first
    share = 1 if chosen.projector_alone else 0.1
    groups = [{"params": list(model.projector.parameters()), "lr": share * chosen.rate}]
    if chosen.projector_alone:
        model.updates.requires_grad_(False)
    else:
        groups.append({"params": model.low_rank, "lr": chosen.rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = Schedule(optimizer, chosen.minutes, chosen.work / "train.log")
    saved = time.monotonic()
    for number in schedule:
        make = listing_row if number % 3 == 2 else asking_row  # answers of one length together
        seeds = range(start + number * chosen.batch, start + (number + 1) * chosen.batch)
        rows = [make(seed) for seed in seeds]
        rows += [emoji_row(rng.choice(emoji), rng) for _ in range(chosen.batch // 4)]
        batch = collate(
            [encode(row, model.processor) for row in rows], padding_token(model.processor)
        )
        name = make.__name__.removesuffix("_row")
        schedule.step(every=12, **{name: answer_loss(model, batch)})
        if time.monotonic() - saved > SAVE_EVERY:
            save(model, chosen.work)
            saved = time.monotonic()
    save(model, chosen.work)


# ---- measure -------------------------------------------------------------------------------------


def measure(model: Model, emoji: list[Emoji], chosen: argparse.Namespace) -> None:
    """Ask about unseen scenes, with and without the picture, and about emoji; read a page."""
    llava = model.llava
    asked = questions(open_data("demo:test"), chosen.limit)
    who = partial(Contestant, llava, lambda rows: nullcontext())
    greedy = Greedy.of(llava, model.processor)
    asking = partial(Asking, greedy=greedy, batch_size=32, longest=8)
    started = time.monotonic()
    ways = {"with the picture": who(), "without": who(pictures=False)}
    told = asking(ways).ask(asked)
    seconds = time.monotonic() - started
    rng = random.Random(2)
    named = [emoji_row(one, rng) for one in rng.sample(emoji, min(100, len(emoji)))]
    names = asking({"": who()}, quiet=True).ask(questions(named, None)).texts[""]
    numbers = {
        "questions": len(asked),
        "accuracy": {name: by_type(asked, answers) for name, answers in told.texts.items()},
        "emoji_named": sum(a == row.id for a, row in zip(names, named, strict=True)) / len(named),
        "emoji": len(named),
        "perplexity": perplexity(llava, model.processor),
        "seconds": round(seconds, 1),
    }
    text = json.dumps(numbers, indent=1)
    (chosen.work / "measured.json").write_text(text + "\n")
    print(text)


def by_type(asked: list[Question], answers: list[str]) -> dict[str, float]:
    """Share of right answers of each type, and of all."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(asked, answers, strict=True):
        right = is_right(answer, question.conversation.answers)
        hits[question.conversation.type].append(right)
        hits["all"].append(right)
    return {name: round(sum(each) / len(each), 4) for name, each in hits.items()}


PHASES = {"words": train_words, "answers": train_answers, "measure": measure}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--cache", type=Path, default=build.CACHE)
    parser.add_argument("--side", type=int, default=build.SIDE, help="pixels, a multiple of 14")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--batch", type=int, default=8, help="scenes in one step")
    parser.add_argument(
        "--rate", type=float, default=2e-3, help="of the updates, or of the projector alone"
    )
    parser.add_argument("--projector-alone", action="store_true", help="no updates")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=500, help="questions")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    with (given.work / "train.log").open("a") as stream:
        stream.write(f"# {vars(given)}\n")
    PHASES[given.phase](load(given.work, given.side, given.cache), load_emoji(given.cache), given)
