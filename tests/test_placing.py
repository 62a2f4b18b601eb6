"""Where visual tokens lie, tried on towers in which no patch looks at another.

There a token changes with its own part of the picture alone, so that what a changed picture changes
must lie where the change is: after the family's own processor, tiles, packing and shuffling.

Faults planted and caught: a grid read in columns; tiles in another order; a crop taken for the
whole picture; row ends taken for tokens; the whole picture and its details in another order.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.processors import CASES, PROCESSORS, tiny_family
from tests.tiny import tiny_model, tiny_picture, tiny_processor
from victorctl.data.conversations import Row
from victorctl.data.pictures import process
from victorctl.features import see
from victorctl.placing import WHOLE, Box, _line, frame, places

SIZES = [(70, 40), (30, 90)]  # width and height
POINTS = [(0.35, 0.61), (0.64, 0.42)]  # inside of what a square crop leaves of either
BLURRED = ("fast_vlm", "got_ocr2")  # towers that convolve


def without_attention(model):
    """Let no token of the tower look at another."""
    text = set(model.get_decoder().modules())
    for module in model.modules():
        parts = dict(module.named_children())
        looks = module not in text and parts.keys() & {"qkv", "q_proj"}
        for name in parts.keys() & {"out_proj", "o_proj", "proj"} if looks else ():
            for parameter in parts[name].parameters():
                torch.nn.init.zeros_(parameter)
    return model


def seen(model, processor, picture):
    """Count a picture's visual tokens, and compute them [v, d]."""
    made, (tokens,) = process(Row("", (picture,), ()), processor)
    features = [part.flatten(0, -2) for part in see(model, made).pooler_output]
    return tokens.count(processor.image_token_id), torch.cat(features)


def away(box, point):
    """Measure how far a point is outside of a token's place, in sizes of the place."""
    (x, y), (left, top, right, bottom) = point, box
    return max((left - x) / (right - left), (x - right) / (right - left),
               (top - y) / (bottom - top), (y - bottom) / (bottom - top))  # fmt: skip


def changed_at(picture, point):
    """Change a tenth of a picture's width and height around a point."""
    width, height = picture.size
    pixels = np.array(picture)
    across, down = (round(at * side) for at, side in zip(point, picture.size, strict=True))
    wide, high = max(1, width // 20), max(1, height // 20)
    pixels[down - high : down + high, across - wide : across + wide] ^= 255
    return Image.fromarray(pixels)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", *CASES])
def test_a_token_lies_where_its_part_of_the_picture_is(name):
    model = without_attention(tiny_model() if name == "llava" else tiny_family(name))
    processor = tiny_processor() if name == "llava" else PROCESSORS[name]()
    for size in SIZES:
        picture = tiny_picture(1, size)
        count, before = seen(model, processor, picture)
        found = places(model, processor, picture, count)
        assert len(found) == count
        for point in POINTS:
            change = (seen(model, processor, changed_at(picture, point))[1] - before).norm(dim=-1)
            most = found[int(change.argmax())]
            assert away(most, point) < (1.4 if name in BLURRED else 0.6)
            if name not in BLURRED:
                touched = (change > 0.02 * change.max()).nonzero().squeeze(1).tolist()
                assert max(away(found[token], point) for token in touched) < 1.2


def test_of_a_cropped_picture_the_middle_was_seen():
    # 80 x 40 becomes 64 x 32 and then 32 x 32: the middle half. 16 tokens are 4 x 4, an eighth of
    # the width and a quarter of the height each, in reading order from a quarter of the width on.
    found = places(tiny_model(), tiny_processor(), Image.new("RGB", (80, 40)), 16)

    for token, expected in {
        0: (0.25, 0, 0.375, 0.25), 1: (0.375, 0, 0.5, 0.25), 15: (0.625, 0.75, 0.75, 1),
    }.items():  # fmt: skip
        assert found[token] == pytest.approx(expected, abs=0.02)
    assert frame(found) == pytest.approx((0.25, 0, 0.75, 1), abs=0.02)


def test_padding_is_past_the_edges_and_was_not_seen():
    processor = tiny_processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False
    )
    padded = processor.image_processor.preprocess

    def preprocess(images, **how):
        square = [Image.new("RGB", (max(each.size),) * 2, (122, 116, 104)) for each in images[0]]
        for large, each in zip(square, images[0], strict=True):
            large.paste(each, ((large.width - each.width) // 2, (large.height - each.height) // 2))
        return padded([square], **how)

    processor.image_processor.preprocess = preprocess
    found = places(tiny_model(), processor, Image.new("RGB", (80, 40)), 16)

    # Half of the square is padding: its rows are half a picture high each, from -1/2 to 3/2.
    assert found[0] == pytest.approx((0, -0.5, 0.25, 0), abs=0.03)
    assert found[15] == pytest.approx((0.75, 1, 1, 1.5), abs=0.03)
    assert frame(found) == pytest.approx((0, 0, 1, 1), abs=0.03)


def test_a_side_of_one_pixel_is_seen_whole():
    processor = tiny_processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False
    )
    for size in [(1, 64), (64, 1), (1, 1)]:
        found = places(tiny_model(), processor, Image.new("RGB", size), 16)
        assert found[0] == pytest.approx((0, 0, 0.25, 0.25), abs=0.02)
        assert found[15] == pytest.approx((0.75, 0.75, 1, 1), abs=0.02)


def test_a_side_of_one_pixel_lies_between_its_padding():
    # Of 8 columns 2 show it, behind 3 of padding: one side is 2 columns, and 3 are before it.
    inside = np.zeros((4, 8), dtype=bool)
    inside[:, 3:5] = True
    assert _line(np.full((4, 8), 0.5), inside, 1) == (-1.5, 2.5)


def test_the_whole_picture_comes_before_its_details_row_by_row():
    # 70 x 40 fits best into two tiles beside each other: 8 x 4 tokens of 4 x 8 pixels, of which
    # nothing is padding but 4 * 40 / 35 -> all four rows; each row ends in a token of no place.
    model, processor = tiny_family("llava_next"), PROCESSORS["llava_next"]()
    found = places(model, processor, Image.new("RGB", (70, 40)), 52)

    assert found[:16] == WHOLE.cells(4, 4)
    assert [token for token, place in enumerate(found) if place is None] == [24, 33, 42, 51]
    assert found[16:24] + found[25:33] == WHOLE.cells(4, 8)[:16]


def test_a_class_token_has_no_place():
    model, processor = tiny_model(), tiny_processor()
    model.config.vision_feature_select_strategy = "full"
    found = places(model, processor, Image.new("RGB", (32, 32)), 17)
    assert (found[0], len(found[1:])) == (None, 16)
    assert found[1] == pytest.approx((0, 0, 0.25, 0.25), abs=0.02)


@pytest.mark.parametrize("count", [15, 17, 19])
def test_tokens_that_are_no_grid_have_no_known_places(count):
    assert places(tiny_model(), tiny_processor(), Image.new("RGB", (32, 32)), count) is None


def test_a_processor_that_does_something_else_leaves_places_unknown():
    processor = tiny_processor()
    straight = processor.image_processor.preprocess

    def mirrored(images, **how):
        return straight([[each.transpose(Image.Transpose.ROTATE_90) for each in images[0]]], **how)

    processor.image_processor.preprocess = mirrored
    assert places(tiny_model(), processor, Image.new("RGB", (60, 60)), 16) is None


def test_a_box_is_cut_into_cells_and_found_within_another():
    box = Box(0.5, 0, 1, 0.5)
    assert box.cells(1, 2) == [(0.5, 0, 0.75, 0.5), (0.75, 0, 1, 0.5)]
    assert Box(0.75, 0.25, 1, 0.5).within(box) == (0.5, 0.5, 1, 1)
    assert box.area == 0.25
