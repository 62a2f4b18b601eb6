"""VTC-CLS keeps what the class token attends to, summed over layers that end with the features'.

Faults planted in vtc_cls.py, each caught here: the layer behind the features; one layer fewer, and
one more; the last layer alone; the best of the layers instead of their sum; either head alone;
what patches receive instead of what the class token pays; order of the scores; plan keeps more
than there is.
"""

import pytest
import torch

from tests.methods.by_hand import tile
from victorctl.methods.base import Spec
from victorctl.methods.vtc_cls import VTCCLS

# What the class token pays to itself and to four patches, head by head; features are the output of
# layer 2. Mean of layer 1: .28 .20 .02 .10; of layer 2: .02 .14 .20 .25; sum: .30 .34 .22 .35.
LAYER_1 = [[0.46, 0.38, 0.04, 0.02, 0.10], [0.34, 0.18, 0.36, 0.02, 0.10]]
LAYER_2 = [[0.62, 0.02, 0.06, 0.04, 0.26], [0.16, 0.02, 0.22, 0.36, 0.24]]
OTHER = [[0.20, 0.40, 0.00, 0.40, 0.00]] * 2
PATCH = [0.10, 0.45, 0.00, 0.45, 0.00]  # what every patch pays
TABLES = {
    layer: torch.tensor([[row] + [PATCH] * 4 for row in heads])
    for layer, heads in enumerate([OTHER, LAYER_1, LAYER_2, OTHER])
}


@pytest.mark.parametrize(
    ("ensemble", "count", "survivors"),
    [
        (2, 1, [3]),
        (
            2,
            2,
            [1, 3],
        ),  # layer 1: {0, 1}; layer 2: {2, 3}; best of both: {0, 3}; heads {0, 3} {1, 2}
        (2, 3, [0, 1, 3]),
        (2, 9, [0, 1, 2, 3]),
        (1, 2, [2, 3]),
        (3, 2, [0, 2]),
        (7, 2, [0, 2]),  # no more layers than there are
    ],
)
def test_keeps_the_patches_that_the_class_token_attends_to_in_reading_order(
    ensemble, count, survivors
):
    kept = VTCCLS(ensemble=ensemble, count=count).see(tile(TABLES, layers=3))

    assert kept.index.tolist() == survivors
    assert kept.states is None


def test_without_a_class_token_the_mean_over_all_patches_stands_for_it():
    table = torch.tensor([[[0.1, 0.1, 0.4, 0.4]] + [[0.4, 0.4, 0.1, 0.1]] * 3])

    kept = VTCCLS(count=2).see(tile({0: table}, has_class=False, layers=1))

    assert kept.index.tolist() == [0, 1]  # the first patch alone has {2, 3}
    assert any("class token" in what for what in VTCCLS.unverified)


def test_one_patch_stays():
    assert VTCCLS(count=1).see(tile({0: [[[0.9, 0.1]] * 2]}, layers=1)).index.tolist() == [0]


def test_the_official_layers_are_the_last_three_that_are_read():
    assert VTCCLS().looks(23) == (20, 21, 22)


@pytest.mark.parametrize(("count", "stay"), [(256, 256), (64, 64), (600, 576)])
def test_plans_what_it_keeps_and_a_budget_finds_it(count, stay):
    llava = Spec(576, 32)

    assert VTCCLS(count=count).plan(llava) == (stay,) * 32
    assert VTCCLS().fit(stay, llava).count == stay
