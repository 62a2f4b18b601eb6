"""The demo's data: drawn scenes of several emoji, and questions with one right answer.

A scene is decided by its seed and its split alone; nothing is stored. A set of kinds that occurs
in one split never occurs in the other, so a test scene is always a new combination.
"""

import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from victorctl.errors import VictorError

PICTURES = Path(__file__).resolve().parent.parent / "assets" / "demo" / "pictures"
SIDE = 80  # pixels, both ways
SIZES = range(18, 29)  # pixels an object takes, both ways
OBJECTS = range(2, 6)  # objects in a scene
REPEAT = 0.2  # how often an object takes the kind of an earlier one
SPACING = 0.85  # of two objects' mean size: the least distance of their centres along one axis
CLEAR = 8  # pixels: the offset from which "left of", "above" and the like hold
EDGE = 3  # pixels: a centre nearer than this to a line of the 3 x 3 grid has no place
TEST_SHARE = 8  # one set of kinds in so many belongs to the test split

PLURALS = {
    "apple": "apples",
    "banana": "bananas",
    "bell": "bells",
    "book": "books",
    "car": "cars",
    "cat": "cats",
    "clock": "clocks",
    "crab": "crabs",
    "duck": "ducks",
    "fish": "fish",
    "frog": "frogs",
    "heart": "hearts",
    "house": "houses",
    "key": "keys",
    "pig": "pigs",
    "rocket": "rockets",
    "snail": "snails",
    "star": "stars",
    "tree": "trees",
    "umbrella": "umbrellas",
}
KINDS = tuple(PLURALS)
PLACES = (
    ("top left", "top middle", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom middle", "bottom right"),
)
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
BACKGROUNDS = (
    (255, 255, 255),
    (236, 240, 246),
    (246, 238, 226),
    (226, 242, 230),
    (244, 230, 240),
    (214, 220, 228),
)
TYPES = ("what", "where", "count", "relation", "compare", "exists")


@dataclass(frozen=True)
class Object:
    """One emoji; `x` and `y` are its centre, in pixels from the top left corner."""

    kind: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Question:
    """A question, its only right answer, and its type (one of `TYPES`)."""

    text: str
    answer: str
    type: str


@dataclass(frozen=True)
class Scene:
    """Two to five emoji on a plain ground, the farthest back first."""

    seed: int
    split: str
    objects: tuple[Object, ...]

    def picture(self) -> Image.Image:
        """Draw the scene: RGB, `SIDE` x `SIDE` pixels."""
        picture = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[self.seed % len(BACKGROUNDS)])
        for item in self.objects:
            sprite = _sprite(item.kind, item.size)
            corner = (item.x - item.size // 2, item.y - item.size // 2)
            picture.paste(sprite, corner, sprite)
        return picture

    def questions(self, count: int) -> tuple[Question, ...]:
        """Ask `count` different questions, as evenly over the types as the scene allows.

        Within a type the answers take turns, so yes and no come equally often.

        Args:
            count: How many are wanted; a scene has at least 40, most of them of type `compare`,
                `count` and `exists`.
        """
        rng = random.Random(f"questions {self.split} {self.seed}")
        pools = [list(_by_turns(_ask(self.objects, kind), rng)) for kind in TYPES]
        rng.shuffle(pools)
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*pools))
        return tuple(itertools.islice(filter(None, rounds), count))


def scene(seed: int, split: str) -> Scene:
    """Make the scene with this number.

    Args:
        seed: Any whole number from 0; the two splits draw different scenes for the same one.
        split: "train" or "test".

    Raises:
        VictorError: If the split has another name.
    """
    if split not in ("train", "test"):
        raise VictorError(f"no split called {split!r}", fix="use train or test")
    rng = random.Random(f"scene {split} {seed}")
    while True:
        kinds = _draw_kinds(rng)
        if len(set(kinds)) > 1 and split_of(kinds) == split and (objects := _place(kinds, rng)):
            return Scene(seed, split, objects)


def split_of(kinds: Sequence[str]) -> str:
    """Tell which split a combination belongs to; order and repeats do not matter."""
    number = zlib.crc32(" ".join(sorted(set(kinds))).encode())
    return "test" if number % TEST_SHARE == 0 else "train"


def place_of(item: Object) -> str | None:
    """Name the cell of the 3 x 3 grid that holds the centre, or None if it is near a line."""
    columns = [i for i in range(3) if _within(item.x, i, -EDGE)]
    rows = [i for i in range(3) if _within(item.y, i, -EDGE)]
    return PLACES[rows[0]][columns[0]] if rows and columns else None


def _within(value: int, cell: int, margin: int) -> bool:
    """Tell whether a coordinate lies in a third of the side whose inner lines move by `margin`."""
    after_first = cell == 0 or value >= cell * SIDE / 3 - margin
    before_next = cell == 2 or value <= (cell + 1) * SIDE / 3 + margin
    return after_first and before_next


def _draw_kinds(rng: random.Random) -> list[str]:
    kinds: list[str] = []
    for _ in range(rng.choice(OBJECTS)):
        again = kinds and rng.random() < REPEAT
        kinds.append(rng.choice(kinds if again else KINDS))
    return kinds


def _place(kinds: Sequence[str], rng: random.Random) -> tuple[Object, ...] | None:
    """Put objects at random places, or give up after 40 places that were taken."""
    objects: list[Object] = []
    for _ in range(40):
        size = rng.choice(SIZES)
        x, y = (rng.randint(size // 2, SIDE - (size + 1) // 2) for _ in range(2))
        item = Object(kinds[len(objects)], x, y, size)
        if all(_apart(item, other) for other in objects):
            objects.append(item)
        if len(objects) == len(kinds):
            return tuple(objects)
    return None


def _apart(a: Object, b: Object) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= SPACING * (a.size + b.size) / 2


@cache
def _sprite(kind: str, size: int) -> Image.Image:
    with Image.open(PICTURES / f"{kind}.png") as picture:
        return picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)


def _by_turns(questions: Sequence[Question], rng: random.Random) -> Iterator[Question]:
    """Shuffle, then go round the answers, so that no answer crowds out the others."""
    groups: dict[str, list[Question]] = {}
    for question in rng.sample(questions, len(questions)):
        groups.setdefault(question.answer, []).append(question)
    rounds = itertools.zip_longest(*rng.sample(list(groups.values()), len(groups)))
    return filter(None, itertools.chain.from_iterable(rounds))


def _ask(objects: Sequence[Object], type_: str) -> list[Question]:
    """List every question of a type that has one right answer in this scene."""
    pairs = {
        "what": _what,
        "where": _where,
        "count": _count,
        "relation": _relation,
        "compare": _compare,
        "exists": _exists,
    }[type_](objects)
    return [Question(text, answer, type_) for text, answer in pairs]


def _single(objects: Sequence[Object]) -> list[Object]:
    """Keep the objects that "the cat" can mean: the only ones of their kind."""
    kinds = [item.kind for item in objects]
    return [item for item in objects if kinds.count(item.kind) == 1]


def _what(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    for row, column in itertools.product(range(3), range(3)):
        near = [o for o in objects if _within(o.x, column, EDGE) and _within(o.y, row, EDGE)]
        place = PLACES[row][column]
        if len(near) == 1 and place_of(near[0]) == place:
            yield f"what is in the {place}?", near[0].kind


def _where(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    for item in _single(objects):
        if place := place_of(item):
            yield f"where is the {item.kind}?", place


def _count(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    yield "how many things are there?", str(len(objects))
    for kind, plural in PLURALS.items():
        count = sum(item.kind == kind for item in objects)
        yield f"how many {plural} are there?", str(count)


def _offset(item: Object, other: Object, relation: str) -> int:
    """Measure how far `item` lies on the relation's side of `other`, in pixels."""
    right, down = RELATIONS[relation]
    return right * (item.x - other.x) + down * (item.y - other.y)


def _relation(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    """Ask only where one object is clearly on that side and no other is nearly so."""
    for item, relation in itertools.product(_single(objects), RELATIONS):
        others = [(_offset(o, item, relation), o.kind) for o in objects if o is not item]
        near = [(offset, kind) for offset, kind in others if offset > -EDGE]
        if len(near) == 1 and near[0][0] >= CLEAR:
            yield f"what is {relation} the {item.kind}?", near[0][1]


def _compare(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    pairs = itertools.permutations(_single(objects), 2)
    for (a, b), relation in itertools.product(pairs, RELATIONS):
        offset = _offset(a, b, relation)
        if abs(offset) >= CLEAR:
            yield f"is the {a.kind} {relation} the {b.kind}?", "yes" if offset > 0 else "no"


def _exists(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    present = {item.kind for item in objects}
    for kind in KINDS:
        article = "an" if kind[0] in "aeiou" else "a"
        yield f"is there {article} {kind}?", "yes" if kind in present else "no"
