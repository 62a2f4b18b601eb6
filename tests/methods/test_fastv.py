"""FastV keeps what the last token attends to, on average over heads, in the layer before its own.

Faults planted in fastv.py, each caught here: first query; mean over all queries; one head; best
head; layer K instead of K - 1; heads made to sum to one over the visual tokens; ranked with the
text; order of the scores; least attended; counted once for all pictures; plan cut a layer late;
plan keeps more than there is; cut behind the last layer.
"""

import pytest
import torch

from tests.methods.by_hand import prompt
from victorctl.methods.base import Spec
from victorctl.methods.fastv import FastV

VISUAL = [1, 2, 3, 4]  # behind one token of text, before two

# What the last token pays: of four visual tokens the mean over heads is .125 .06 .13 .14. Head 0
# alone would keep {0, 2}, as would the better head; head 1 alone {1, 3}; and so would heads whose
# shares were made to sum to one over the visual tokens (.17 .28 .17 .38).
LAST = [[0.05, 0.25, 0.04, 0.26, 0.20, 0.10, 0.10], [0.04, 0.0, 0.08, 0.0, 0.08, 0.40, 0.40]]
OTHERS = [0.10, 0.45, 0.44, 0.0, 0.01, 0.0, 0.0]  # what everybody else pays: {0, 1}
ATTENTION = torch.tensor([[OTHERS] * 6 + [row] for row in LAST])
WRONG_LAYER = torch.tensor([[[0.0, 0.4, 0.0, 0.0, 0.4, 0.1, 0.1]] * 7] * 2)  # {0, 3}
TABLES = {0: WRONG_LAYER, 1: ATTENTION, 2: WRONG_LAYER}


@pytest.mark.parametrize(
    ("count", "survivors"),
    [(1, [3]), (2, [2, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_keeps_what_the_last_token_attends_to_most_in_reading_order(count, survivors):
    kept = FastV(layer=2, count=count).reduce(prompt(TABLES, layer=2, visual=VISUAL))

    assert kept.index.tolist() == survivors
    assert kept.states is None


def test_pictures_are_ranked_together_and_each_adds_its_count():
    kept = FastV(layer=2, count=1).reduce(
        prompt(TABLES, layer=2, visual=VISUAL, image=[0, 0, 1, 1])
    )

    assert kept.index.tolist() == [2, 3]  # one each would be {0, 3}


def test_one_visual_token_stays():
    kept = FastV(layer=2, count=5).reduce(prompt(TABLES, layer=2, visual=[2]))

    assert kept.index.tolist() == [0]


def test_the_layer_before_the_cut_is_read():
    assert FastV(layer=2).before(32) == (2,)
    assert FastV(layer=5).before(3) == (3,)  # behind the last: nothing is dropped


@pytest.mark.parametrize(
    ("count", "spec", "plan"),
    [
        (2, Spec(4, 5), (4, 4, 2, 2, 2)),
        (9, Spec(4, 5), (4, 4, 4, 4, 4)),
        (2, Spec(4, 1), (4,)),
    ],
)
def test_plans_what_it_keeps(count, spec, plan):
    assert FastV(layer=2, count=count).plan(spec) == plan


@pytest.mark.parametrize(("count", "mean"), [(288, 306), (144, 171), (58, 90)])
def test_means_are_the_published_ones_and_a_budget_finds_them(count, mean):
    llava = Spec(576, 32)

    assert round(FastV(layer=2, count=count).mean(llava)) == mean
    assert FastV(layer=2).fit(mean, llava).count == count


def test_a_budget_below_what_two_full_layers_cost_gives_the_nearest():
    assert FastV(layer=2).fit(10, Spec(576, 32)).count == 1
