"""Scenes draw what they say, and every question has one right answer."""

import collections

import numpy as np
import pytest

from victorctl.data import scenes
from victorctl.data.scenes import Object, Scene, place_of, scene, split_of
from victorctl.errors import VictorError

ASSETS = scenes.PICTURES.parent

# The lines of the 3 x 3 grid lie at 26.7 and 53.3 pixels.
HAND = Scene(
    seed=0,
    split="train",
    objects=(
        Object("cat", x=12, y=15, size=20),  # top left
        Object("duck", x=40, y=18, size=20),  # top middle
        Object("key", x=66, y=64, size=20),  # bottom right
        Object("key", x=20, y=66, size=20),  # bottom left
    ),
)


def asked(objects: tuple[Object, ...], type_: str) -> dict[str, str]:
    """List all questions of one type with their answers."""
    every = Scene(0, "train", objects).questions(10_000)
    return {question.text: question.answer for question in every if question.type == type_}


def test_what_names_the_only_object_of_a_cell():
    assert asked(HAND.objects, "what") == {
        "what is in the top left?": "cat",
        "what is in the top middle?": "duck",
        "what is in the bottom left?": "key",
        "what is in the bottom right?": "key",
    }


def test_where_is_asked_only_of_the_only_one_of_its_kind():
    assert asked(HAND.objects, "where") == {
        "where is the cat?": "top left",
        "where is the duck?": "top middle",
    }


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (9, 9, "top left"),
        (23, 9, "top left"),  # 3.7 from the line at 26.7
        (24, 9, None),  # 2.7 from it
        (29, 9, None),
        (30, 9, "top middle"),
        (40, 40, "centre"),
        (50, 40, "centre"),
        (51, 40, None),  # 2.3 from the line at 53.3
        (57, 40, "middle right"),
        (40, 71, "bottom middle"),
        (70, 55, None),
    ],
)
def test_a_place_is_named_only_away_from_the_lines(x, y, place):
    assert place_of(Object("cat", x, y, 18)) == place


def test_what_is_not_asked_of_a_cell_with_a_second_object_just_outside():
    inside, outside = Object("cat", 12, 12, 18), Object("duck", 28, 40, 18)
    assert "what is in the top left?" in asked((inside, outside), "what")
    assert "what is in the top left?" not in asked((inside, Object("duck", 28, 25, 18)), "what")


def test_count_tells_every_kind_and_the_whole():
    answers = asked((Object("cat", 12, 15, 20), *HAND.objects[2:]), "count")
    assert answers["how many keys are there?"] == "2"
    assert answers["how many cats are there?"] == "1"
    assert answers["how many pigs are there?"] == "0"
    assert answers["how many things are there?"] == "3"
    assert len(answers) == len(scenes.KINDS) + 1


def test_relation_needs_exactly_one_object_on_that_side():
    assert asked(HAND.objects, "relation") == {
        # the left key (x 20) is right of the cat (x 12) too: three objects are
        "what is right of the duck?": "key",  # only the key at 66
    }


def test_relation_is_left_out_when_a_second_object_is_nearly_on_that_side():
    cat, pig = Object("cat", 40, 40, 18), Object("pig", 12, 12, 18)
    assert asked((cat, pig), "relation")["what is left of the cat?"] == "pig"
    for x in (38, 42):  # 2 pixels left of the cat, and 2 right of it: both nearly left
        beside = Object("key", x, 70, 18)
        assert "what is left of the cat?" not in asked((cat, pig, beside), "relation")
    away = Object("key", 43, 70, 18)  # 3 pixels right of it: clearly not
    assert asked((cat, pig, away), "relation")["what is left of the cat?"] == "pig"


def test_compare_goes_by_one_axis_and_needs_a_clear_offset():
    answers = asked(HAND.objects[:2], "compare")  # 28 pixels apart across, 3 down
    assert answers == {
        "is the cat left of the duck?": "yes",
        "is the cat right of the duck?": "no",
        "is the duck left of the cat?": "no",
        "is the duck right of the cat?": "yes",
    }
    answers = asked((Object("cat", 40, 20, 18), Object("pig", 40, 28, 18)), "compare")  # exactly 8
    assert answers["is the cat above the pig?"] == "yes"
    assert answers["is the cat below the pig?"] == "no"
    assert not asked((Object("cat", 40, 20, 18), Object("pig", 47, 27, 18)), "compare")


def test_exists_is_asked_of_every_kind():
    answers = asked(HAND.objects, "exists")
    assert len(answers) == len(scenes.KINDS)
    assert answers["is there a cat?"] == "yes"
    assert answers["is there an apple?"] == "no"


def test_splits_share_no_set_of_kinds():
    sets = {
        split: {frozenset(o.kind for o in scene(seed, split).objects) for seed in range(3000)}
        for split in ("train", "test")
    }
    assert len(sets["train"]) > 1500
    assert len(sets["test"]) > 500
    assert not sets["train"] & sets["test"]


def test_order_and_repeats_do_not_change_the_split():
    drawn = [[o.kind for o in scene(seed, "test").objects] for seed in range(50)]
    assert all(split_of([*kinds[::-1], kinds[0]]) == "test" for kinds in drawn)


def test_the_same_number_gives_the_same_scene_and_questions():
    scene_a, scene_b = scene(7, "test"), scene(7, "test")
    assert scene_a == scene_b
    assert scene_a.questions(20) == scene_b.questions(20)
    assert scene_a.questions(20)[:5] == scene_a.questions(5)
    assert scene_a.picture().tobytes() == scene_b.picture().tobytes()
    assert scene_a != scene(8, "test")


def test_objects_lie_inside_and_keep_apart():
    pairs = 0
    for seed in range(300):
        objects = scene(seed, "train").objects
        assert len(objects) in scenes.OBJECTS
        assert len({item.kind for item in objects}) > 1
        for i, a in enumerate(objects):
            assert a.size // 2 <= a.x <= 80 - a.size // 2
            assert a.size // 2 <= a.y <= 80 - a.size // 2
            for b in objects[:i]:
                pairs += 1
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= 0.85 * (a.size + b.size) / 2
    assert pairs > 1000


def test_a_picture_shows_its_objects_on_plain_ground():
    drawn = scene(3, "train")
    picture = np.asarray(drawn.picture(), np.int64)
    assert picture.shape == (80, 80, 3)
    differs = (picture != scenes.BACKGROUNDS[3]).any(-1)
    covered = np.zeros_like(differs)
    for item in drawn.objects:
        left, top = item.x - item.size // 2, item.y - item.size // 2
        assert differs[item.y - 4 : item.y + 4, item.x - 4 : item.x + 4].mean() > 0.5
        covered[top : top + item.size, left : left + item.size] = True
    assert not differs[~covered].any()
    star = Scene(0, "train", (Object("star", 40, 40, 28),)).picture()  # takes 26 to 53, both ways
    assert star.getpixel((26, 26)) == scenes.BACKGROUNDS[0]  # the ground shows beside its points


def test_a_later_object_covers_an_earlier_one():
    below, above = Object("heart", 40, 40, 28), Object("star", 40, 40, 28)
    orders = ((below, above), (above, below), (above,))
    star, heart, alone = (Scene(0, "train", o).picture().getpixel((40, 42)) for o in orders)
    assert star == alone
    assert star != heart


def test_questions_are_different_and_balanced():
    types, answers = collections.Counter(), collections.defaultdict(collections.Counter)
    for seed in range(1000):
        questions = scene(seed, "test").questions(4)
        assert len({question.text for question in questions}) == 4
        for question in questions:
            types[question.type] += 1
            answers[question.type][question.answer] += 1
    assert set(types) == set(scenes.TYPES)
    assert min(types.values()) > 0.12 * types.total()
    assert max(types.values()) < 0.22 * types.total()
    for name in ("compare", "exists"):
        assert set(answers[name]) == {"yes", "no"}
        assert 0.45 < answers[name]["yes"] / types[name] < 0.55
    assert answers["count"].most_common(1)[0][1] < 0.4 * types["count"]
    assert len(answers["where"]) == 9
    assert len(answers["what"]) == len(scenes.KINDS)


def test_every_scene_has_questions_enough():
    assert all(len(scene(seed, "test").questions(40)) == 40 for seed in range(500))


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(VictorError, match="no split called 'val'"):
        scene(0, "val")


def test_the_shipped_demo_is_small():
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()]
    assert len(sizes) > len(scenes.KINDS)
    assert sum(sizes) <= 8_000_000
    assert {path.stem for path in scenes.PICTURES.glob("*.png")} == set(scenes.KINDS)
