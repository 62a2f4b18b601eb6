"""ELIP prunes in three stages inside the tower; what goes is one token more, a weighted mean.

Faults planted in elip.py, each caught here: either head alone; order of the scores; merged token
in front; a plain mean; a sum; weights that do not sum to one; weights of all patches; counts as
shares of what is left instead of what there was, and rounded up; a stage's share for another's;
the last stages of a shallow tower taken for the first; looking ahead by no layer; without the merged token, and with more than there were.
"""

import pytest
import torch

from tests.methods.by_hand import inside
from victorctl.methods.base import Spec
from victorctl.methods.elip import ELIP

STATES = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
# Mean .1 .2 .05 .15 .3; head 0 alone would keep {0, 3}; head 1 alone would merge to 6.
SEEN = torch.tensor([[0.20, 0.10, 0.05, 0.25, 0.15], [0.00, 0.30, 0.05, 0.05, 0.45]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pruned_become_one_token_behind_the_kept_weighted_by_their_attention(dtype):
    # Of 8 patches at first 2 are to be left; 4 were merged before, and stand here as the last.
    shown = inside(STATES.to(dtype), layer=20, seen=SEEN, patches=8)

    kept = ELIP(count=2).trim(shown)

    assert kept.index.tolist() == [0, 1, 2]
    assert kept.states.dtype == dtype
    assert kept.states.flatten().tolist() == [2, 16, 5]  # 1 / 3 + 4 / 6 + 8 / 2


def test_nothing_changes_where_nothing_is_pruned():
    kept = ELIP(count=5).trim(inside(STATES, layer=20, seen=SEEN))

    assert kept.index.tolist() == [0, 1, 2, 3, 4]
    assert kept.states is None
    assert ELIP(count=5).plan(Spec(5, 3)) == (5, 5, 5)


@pytest.mark.parametrize(
    ("patches", "count", "entering"),
    [
        (576, 230, [519, 375, 231]),  # the paper's .90, .65 and .40, and one merged token
        (12, 3, [11, 7, 4]),  # 10.5, 6.75 and 3
        (12, 2, [11, 7, 3]),  # 10.3, 6.2 and 2, which floats make a little less of
        (12, 1, [11, 6, 2]),  # 10.2, 5.6 and 1
        (1, 1, [1, 1, 1]),
        (3, 2, [3, 3, 3]),  # 2.8, 2.4 and 2: one is merged with itself
    ],
)
def test_plans_what_it_keeps_stage_by_stage(patches, count, entering):
    way, states, counts = ELIP(count=count), torch.rand(patches, 2), []
    for layer in way.within(23):
        seen = torch.rand(2, len(states), generator=torch.Generator().manual_seed(layer))
        kept = way.trim(inside(states, layer=layer, seen=seen, patches=patches))
        states = states[kept.index] if kept.states is None else kept.states
        counts.append(len(states))

    assert counts == entering
    assert way.plan(Spec(patches, 4)) == (entering[-1],) * 4


@pytest.mark.parametrize(
    ("layers", "stages", "ahead"),
    [
        (23, (4, 8, 20), [4, 12, 3]),
        (26, (5, 9, 23), [5, 14, 3]),
        (2, (0, 1), [1, 1]),
        (1, (0,), [1]),
    ],
)
def test_stages_are_at_the_same_shares_of_any_tower(layers, stages, ahead):
    assert ELIP().within(layers) == stages
    assert [ELIP().ahead(stage, layers) for stage in stages] == ahead
    assert all(stage + n <= layers for stage, n in zip(stages, ahead, strict=True))


def test_a_shallow_tower_has_the_last_stages():
    kept = ELIP(count=2).trim(inside(STATES, layer=1, seen=SEEN, patches=8, layers=2))

    assert len(kept.index) == 3


def test_attention_that_is_nothing_gives_no_infinite_state():
    kept = ELIP(count=1).trim(inside(STATES, layer=20, seen=torch.eye(5)[:1], patches=8))

    assert kept.states.flatten().tolist() == [1, 0]


@pytest.mark.parametrize(("budget", "count"), [(231, 230), (65, 64), (1, 1)])
def test_a_budget_finds_its_patches(budget, count):
    assert ELIP().fit(budget, Spec(576, 32)).count == count
