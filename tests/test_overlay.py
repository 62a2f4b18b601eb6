import numpy as np
import pytest
from PIL import Image

from victorctl.overlay import Layer, Said, crop, draw, paint
from victorctl.placing import WHOLE, Box

LEFT, RIGHT = WHOLE.cells(1, 2)
ASKED = {"question": "how many?", "said": [Said("Victor with 2 registers", "3", "12 ms")]}


def titles(figure):
    return [axes.get_title() for axes in figure.get_axes() if axes.get_title()]


def words(figure):
    return [text.get_text() for axes in figure.get_axes() for text in axes.texts]


def depths(figure):
    """Read how opaque the left and the right of register 0's panel are."""
    (panel,) = (axes for axes in figure.get_axes() if axes.get_title().startswith("register 0"))
    return panel.images[1].get_array()[0, [0, -1], 3].tolist()


def test_a_weight_is_spread_over_its_place_so_that_the_mean_is_what_lies_inside():
    # A weight over half of the picture counts double per area.
    painted = paint(np.array([0.1, 0.3]), [LEFT, RIGHT], (4, 2))
    assert painted == pytest.approx(np.array([[0.2, 0.2, 0.6, 0.6]] * 2))
    assert painted.mean() == pytest.approx(0.4)


def test_places_that_overlap_add_up_and_none_is_no_place():
    painted = paint(np.array([0.1, 0.3, 0.5]), [WHOLE, RIGHT, None], (2, 1))
    assert painted == pytest.approx(np.array([[0.1, 0.7]]))


def test_what_lies_in_padding_is_not_painted():
    # The first place is half above the picture: half of its weight is shown.
    above, below = Box(0, -0.5, 1, 0.5), Box(0, 0.5, 1, 1.5)
    painted = paint(np.array([0.4, 0.2]), [above, below], (1, 2))
    assert painted == pytest.approx(np.array([[0.4], [0.2]]))


def test_of_a_cropped_picture_what_the_model_saw_is_shown_and_painted():
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (20, 0, 60, 40))
    middle = Box(0.25, 0, 0.75, 1)
    figure = draw(picture, middle.cells(1, 2), [Layer("", np.array([[0.1, 0.4]]))], **ASKED)

    shown = figure.get_axes()[0].images[0].get_array()
    assert shown.shape[0] == shown.shape[1]
    assert np.unique(shown.reshape(-1, 3), axis=0).tolist() == [[0, 0, 255]]
    assert depths(figure) == pytest.approx([0.9 / 4, 0.9])  # a quarter of the deepest on the left


def test_of_a_part_smaller_than_a_pixel_one_pixel_is_shown():
    picture = Image.new("RGB", (1, 64), "red")
    picture.putpixel((0, 32), (0, 0, 255))
    shown = crop(picture, Box(0, 0.497, 1, 0.503))
    assert shown.size == (400, 400)
    assert shown.getcolors() == [(160000, (0, 0, 255))]
    assert crop(picture, Box(0, 0.999, 1, 1)).size == (400, 400)


def test_every_layer_has_a_panel_for_the_mean_and_for_each_register():
    layers = [
        Layer("Layer 0", np.array([[0.2, 0.3], [0.1, 0.1]])),
        Layer("Layer 1, the last that sees the picture", np.array([[0.0, 0.9], [0.5, 0.0]])),
    ]
    figure = draw(Image.new("RGB", (8, 4)), [LEFT, RIGHT], layers, **ASKED)

    assert titles(figure) == [
        *("mean of all, 35.0 %", "register 0, 50.0 %", "register 1, 20.0 %"),
        *("mean of all, 70.0 %", "register 0, 90.0 %", "register 1, 50.0 %"),
    ]
    assert words(figure) == ["how many?", "Victor with 2 registers, 12 ms", "3"]
    blocks = [part.get_suptitle() for part in figure.subfigs if part.get_suptitle()]
    assert blocks == ["Layer 0", "Layer 1, the last that sees the picture"]


def test_blue_is_deepest_where_a_register_looks_most():
    layer = Layer("", np.array([[0.1, 0.2], [0.3, 0.3]]))
    figure = draw(Image.new("RGB", (8, 4)), [LEFT, RIGHT], [layer], **ASKED)
    assert depths(figure) == pytest.approx([0.45, 0.9])


def test_tokens_of_unknown_places_are_drawn_in_reading_order():
    weights = np.array([[0.2, 0.3, 0.1], [0.1, 0.1, 0.0]])
    figure = draw(Image.new("RGB", (8, 4)), None, [Layer("Layer 0", weights)], **ASKED)

    assert titles(figure) == []
    bars = figure.get_axes()[-1]
    assert bars.get_xlabel() == "visual tokens, in reading order"
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == ["register 0, 60.0 %", "register 1, 20.0 %"]
    depth = bars.images[0].get_array()[..., 3]  # of each register by itself
    assert depth.flatten().tolist() == pytest.approx([0.6, 0.9, 0.3, 0.9, 0.9, 0])


def test_of_many_registers_the_first_are_drawn_and_all_are_counted(monkeypatch):
    monkeypatch.setattr("victorctl.overlay.MOST", 2)
    weights = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    figure = draw(Image.new("RGB", (8, 8)), [LEFT, RIGHT], [Layer("Layer 2", weights)], **ASKED)

    assert titles(figure) == ["mean of all, 40.0 %", "register 0, 20.0 %", "register 1, 40.0 %"]
    assert figure.subfigs[1].get_suptitle() == "Layer 2; the first 2 of 3 registers"


def test_long_texts_are_cut_and_dollars_are_no_formulas():
    asked = {"question": "what is it? " * 40, "said": [Said("base", "", "1 s"),
                                                       Said("x", "$a $b", "1 s")]}  # fmt: skip
    figure = draw(Image.new("RGB", (8, 4)), [WHOLE], [Layer("", np.array([[0.1]]))], **asked)

    figure.draw_without_rendering()
    question, *_ = shown = words(figure)
    assert (question.count("\n"), question.endswith(" ...")) == (1, True)
    assert ("(nothing)" in shown, "$a $b" in shown) == (True, True)
