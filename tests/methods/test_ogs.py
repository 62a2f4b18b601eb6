"""OGS keeps the patches nearest to objects, measured by the objects' size, and some at random.

Faults planted in ogs.py, each caught here: rows for columns; corner for centre; right and lower
edge for width and height; size left out, or as its root, or doubled; objects added up; a
narrower Gaussian; one sample for a patch; light that is none far away, so that the first patches
win; random ones among those kept, or fewer of them; random numbers that differ between calls, or
are equal for all pictures; order of the heat; another picture's boxes; boxes that are none taken,
or left out in silence.
"""

import json
import math
from zlib import crc32

import pytest
import torch

from tests.methods.by_hand import inside
from victorctl.errors import VictorError
from victorctl.methods.base import Spec
from victorctl.methods.ogs import OGS, heat_of


def kept_of(boxes, side, folder, *, count, seed=0, name="cat"):
    file = folder / f"{count}-{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps({"dog": [[0, 0, 0.1, 0.1]], name: boxes}))
    states = torch.rand(side[0] * side[1], 2)
    shown = inside(states, layer=0, side=side, row=crc32(name.encode()), seed=seed)
    kept = OGS(count=count, boxes=str(file)).trim(shown)
    assert kept.states is None
    return kept.index.tolist()


@pytest.mark.parametrize(
    ("boxes", "objects"),
    [
        ([[0.5, 0.0, 0.25, 0.25]], [2, 1, 3, 6]),  # the third patch of the first row
        ([[0.625, 0.125, 0.0, 0.0]], [2, 1, 3, 6]),  # a point in its middle
        ([[0.25, 0.25, 0.5, 0.75]], [9, 10, 5, 6, 13, 14]),
    ],
)
def test_objects_keep_the_patches_around_their_middle(boxes, objects, tmp_path):
    count = {4: 5, 6: 8}[len(objects)]  # three of four: 3.75 and 6

    kept = kept_of(boxes, (4, 4), tmp_path, count=count)

    assert len(kept) == count
    assert kept == sorted(set(kept))
    assert set(objects) <= set(kept)


def test_distance_counts_by_an_objects_size(tmp_path):
    # A row of 16 patches; one box on patch 2, one on patches 10 to 13. Squares of distances in
    # patches over widths: 11, 12, 2: at most .06; 10, 13: .6; 1, 3: 1; 9, 14: 1.6; 8, 15: 3.1.
    # Without sizes 0 and 4 would come before 9 and 14.
    boxes = [[2 / 16, 0, 1 / 16, 1], [10 / 16, 0, 4 / 16, 1]]

    assert set(kept_of(boxes, (1, 16), tmp_path, count=12)) >= {1, 2, 3, 9, 10, 11, 12, 13, 14}


def test_heat_is_the_papers():
    boxes, side = [[0.1, 0.2, 0.5, 0.3], [0.6, 0.1, 0.2, 0.8]], (2, 3)
    width = (1 - 0.7) / (1 + 0.7)

    for (left, top, wide, high), heat in zip(boxes, heat_of(boxes, side), strict=True):
        for patch in range(6):
            row, column = divmod(patch, 3)
            samples = [
                math.exp(
                    -(
                        ((row * 14 + y + 0.5) / 28 - top - high / 2) ** 2
                        + ((column * 14 + x + 0.5) / 42 - left - wide / 2) ** 2
                    )
                    / (2 * width**2 * wide * high + 1e-6)
                )
                for y in range(14)
                for x in range(14)
            ]
            assert heat[patch].item() == pytest.approx(math.log(sum(samples) / 196), abs=1e-3)


def test_a_patch_is_as_warm_as_its_warmest_object_makes_it(tmp_path):
    # Of a row of 8, a box twice as wide as a patch on patch 2, and ten narrower ones on patch 6:
    # 1 and 3 are warmer than 5 and 7, unless the ten are added up.
    boxes = [[1.5 / 8, 0, 2 / 8, 1]] + [[6 / 8, 0, 1 / 8, 1]] * 10

    assert {1, 2, 3, 6} <= set(kept_of(boxes, (1, 8), tmp_path, count=5))


def test_where_light_is_too_faint_for_a_float_the_nearest_still_win(tmp_path):
    small = [[23 / 24, 23 / 24, 1 / 24, 1 / 24]]  # the last of 24 x 24 patches
    place = torch.arange(576)
    away = (place // 24 - 23).square() + (place % 24 - 23).square()
    nearest = set(away.argsort(stable=True)[:160].tolist())

    assert nearest <= set(kept_of(small, (24, 24), tmp_path, count=229))


def test_of_576_patches_172_are_on_objects_and_57_others_are_drawn(tmp_path):
    box = [[0.4, 0.3, 0.2, 0.4]]
    first, second = (set(kept_of(box, (24, 24), tmp_path, count=229, seed=seed)) for seed in (1, 2))
    warmest = set(heat_of(box, (24, 24))[0].argsort(descending=True)[:172].tolist())

    assert len(first) == len(second) == OGS().plan(Spec(576, 32))[0] == 229
    assert warmest <= first & second
    assert first != second
    assert first == set(kept_of(box, (24, 24), tmp_path, count=229, seed=1))
    assert max(first - warmest) > 400 > 200 > min(first - warmest)  # from all over the picture


@pytest.mark.parametrize("count", [1, 2])
def test_few_tokens_are_on_objects(count, tmp_path):
    kept = kept_of([[0.5, 0.0, 0.25, 0.25]], (1, 4), tmp_path, count=count)

    assert 2 in kept
    assert len(kept) == count


@pytest.mark.parametrize("count", [16, 99])
def test_all_patches_stay_where_there_are_no_more(count, tmp_path):
    assert kept_of([[0, 0, 1, 1]], (4, 4), tmp_path, count=count) == list(range(16))
    assert OGS(count=count).plan(Spec(16, 3)) == (16,) * 3


def test_it_trims_before_the_tower_and_a_budget_is_met():
    assert OGS().within(23) == (0,)
    assert OGS.extras == ("boxes",)
    assert OGS().fit(64, Spec(576, 32)).count == 64


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        '{"cat": 5}',
        '{"cat": null}',
        '{"cat": [5]}',
        '{"cat": [[0, 0, 1]]}',
        '{"cat": [[0, 0, 1, 1], [0, 0, 1, 1, 1]]}',
        '{"cat": [[0, 0, 1, "1"]]}',
        '{"cat": [[0, 0, true, 1]]}',
        '{"cat": [[0, 0, 1, null]]}',
        '{"cat": [[0, 0, NaN, 1]]}',
        '{"cat": [[0, 0, -0.5, 1]]}',
        '{"cat": [[-0.5, 0, 0.7, 1]]}',
        '{"cat": [[0.5, 0, 0.7, 1]]}',
        '{"cat": [[0, 0.5, 1, 0.7]]}',
        '{"cat": [[12, 30, 200, 180]]}',
        '{"dog": [[0, 0, 1, 1]], "cat": {}}',
    ],
)
def test_what_is_no_file_of_boxes_is_refused_by_name(content, tmp_path):
    file = tmp_path / "boxes.json"
    if content is not None:
        file.write_text(content)
    shown = inside(torch.rand(16, 2), layer=0, side=(4, 4), row=crc32(b"cat"))

    with pytest.raises(VictorError, match=r"boxes\.json: .*\n  fix: write \{\"row id\": \[\[left"):
        OGS(count=4, boxes=str(file)).trim(shown)


@pytest.mark.parametrize("content", ['{"dog": [[0, 0, 1, 1]]}', '{"cat": []}', "{}"])
def test_a_picture_without_boxes_is_refused(content, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(content)
    shown = inside(torch.rand(16, 2), layer=0, side=(4, 4), row=crc32(b"cat"))

    with pytest.raises(
        VictorError, match=r"boxes\.json: no boxes for one of .*\n  fix: give a list"
    ):
        OGS(count=4, boxes=str(file)).trim(shown)


def test_no_file_is_refused():
    shown = inside(torch.rand(16, 2), layer=0, side=(4, 4))

    with pytest.raises(VictorError, match=r"no boxes are given\n  fix: give a file of them: --set"):
        OGS(count=4).trim(shown)


def test_a_box_may_stand_out_by_what_rounding_does(tmp_path):
    assert kept_of([[0.5, -0.0004, 0.5004, 1.0]], (1, 4), tmp_path, count=1) in ([2], [3])
