"""PyramidDrop keeps a share of what is left, several times, by the last token's attention.

Faults planted in pyramiddrop.py, each caught here: first query; one head; best head; order of the
scores; a share of all tokens instead of those left; a share dropped instead of kept; stages not
moved to the depth of the model; a stage before the first layer, which nothing was seen in; the
same layer twice; plan cut a layer late; shares above 1 to 100 per cent left out of `fit`.
"""

import pytest
import torch

from tests.methods.by_hand import prompt
from victorctl.methods.base import Spec
from victorctl.methods.pyramiddrop import PyramidDrop

VISUAL = [1, 2, 3, 4]

# As in FastV's example: means .125 .06 .13 .14; head 0 and the better head {0, 2}, head 1 {1, 3}.
LAST = [[0.05, 0.25, 0.04, 0.26, 0.20, 0.10, 0.10], [0.04, 0.0, 0.08, 0.0, 0.08, 0.40, 0.40]]
OTHERS = [0.10, 0.45, 0.44, 0.0, 0.01, 0.0, 0.0]
TABLES = {7: torch.tensor([[OTHERS] * 6 + [row] for row in LAST])}


@pytest.mark.parametrize(
    ("percent", "survivors"),
    [(50, [2, 3]), (75, [0, 2, 3]), (25, [3]), (1, [3]), (100, [0, 1, 2, 3])],
)
def test_keeps_a_share_by_what_the_last_token_attends_to(percent, survivors):
    kept = PyramidDrop(percent=percent).reduce(prompt(TABLES, layer=8, visual=VISUAL))

    assert kept.index.tolist() == survivors


def test_one_visual_token_stays():
    kept = PyramidDrop(percent=10).reduce(prompt(TABLES, layer=8, visual=[2]))

    assert kept.index.tolist() == [0]


def test_each_stage_halves_what_the_stage_before_left():
    plan = PyramidDrop().plan(Spec(576, 32))

    assert plan == (576,) * 8 + (288,) * 8 + (144,) * 8 + (72,) * 8
    assert PyramidDrop().mean(Spec(576, 32)) == 270


def test_plans_what_it_keeps_stage_by_stage():
    way, left, counts = PyramidDrop(percent=30), list(range(1, 20)), []
    for layer in way.before(32):
        table = torch.rand(2, 21, 21, generator=torch.Generator().manual_seed(layer))
        kept = way.reduce(prompt({layer - 1: table}, layer=layer, visual=left))
        left = [left[place] for place in kept.index]
        counts.append(len(left))

    assert counts == [6, 2, 1]  # 5.7, 1.8, .6
    assert way.plan(Spec(19, 32)) == (19,) * 8 + (6,) * 8 + (2,) * 8 + (1,) * 8


@pytest.mark.parametrize(
    ("layers", "cuts"),
    [(32, (8, 16, 24)), (28, (7, 14, 21)), (4, (1, 2, 3)), (2, (1,)), (1, (1,))],
)
def test_stages_are_at_the_same_shares_of_any_depth_and_never_before_the_first_layer(layers, cuts):
    assert PyramidDrop().before(layers) == cuts


@pytest.mark.parametrize(("visual", "budget", "percent"), [(576, 270, 50), (16, 12, 80)])
def test_a_budget_finds_its_share_however_few_tokens_a_picture_has(visual, budget, percent):
    found = PyramidDrop().fit(budget, Spec(visual, 32))

    assert found.percent <= 100
    best = min(abs(PyramidDrop(percent=n).mean(Spec(visual, 32)) - budget) for n in range(1, 101))
    assert abs(found.mean(Spec(visual, 32)) - budget) == best
    assert abs(found.percent - percent) <= 5
