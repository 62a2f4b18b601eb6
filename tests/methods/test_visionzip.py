"""VisionZip: dominant patches behind the class token, then what the others are merged into.

`zipped` below is a second, plain implementation, loop by loop.

Faults planted in visionzip.py, each caught here: another layer; one head; class token's column
counted as a patch; class token left out, or at the end, or not counted; order of the scores;
targets in a row, or at one step more; keys of one head, or heads side by side; queries for keys;
dot product instead of cosine; dominant patches merged too; targets assigned to others; the sum of
those assigned instead of their mean; merged ones in front; a share of contextual tokens for
another; budgets of 1 and 2 that give more; plan keeps more than there is.
"""

import numpy as np
import pytest
import torch

from tests.methods.by_hand import tile
from victorctl.methods.base import Spec
from victorctl.methods.visionzip import VisionZip

PATCHES, HEADS = 13, 3


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TABLE = (2 * random(HEADS, PATCHES + 1, PATCHES + 1, seed=6)).softmax(dim=-1)
KEY = random(HEADS, PATCHES + 1, 4, seed=2) * (1 + 3 * random(1, PATCHES + 1, 1, seed=3).abs())
QUERY = random(HEADS, PATCHES + 1, 4, seed=5)
STATES = random(PATCHES + 1, 5, seed=4)


def shown(dtype=torch.float32, *, has_class=True):
    first = 0 if has_class else 1
    attention = {22: TABLE[:, first:, first:], 23: TABLE.flip(2), 21: TABLE.flip(2)}
    compared = {22: (QUERY[:, first:], KEY[:, first:]), 23: (KEY, QUERY), 21: (KEY, QUERY)}
    states = STATES[first:].to(dtype)
    return tile(attention, states=states, compared=compared, has_class=has_class)


def zipped(dominant, contextual, *, average=False, has_class=True):
    """What the specification says, in numbers [tokens][features]."""
    table, key, states = (of.double().numpy() for of in (TABLE, KEY, STATES))
    features, key = states[1:], key.mean(axis=0)[1:]
    if has_class:
        score = [sum(table[head][0][1 + at] for head in range(HEADS)) for at in range(PATCHES)]
    else:
        score = table[:, 1:, 1:].mean(axis=(0, 1))
    order = sorted(range(PATCHES), key=lambda at: -score[at])
    best = sorted(order[: dominant - has_class])
    rest = [at for at in range(PATCHES) if at not in best]
    step = max(1, len(rest) // max(1, contextual))
    targets = [rest[place * step] for place in range(contextual)]

    def alike(one, other):
        return key[one] @ key[other] / np.linalg.norm(key[one]) / np.linalg.norm(key[other])

    own = {target: [] for target in targets}
    for at in rest:
        if targets and at not in targets:
            own[max(targets, key=lambda target: alike(at, target))].append(features[at])
    out = [states[0]] * has_class + [features[at] for at in best]
    for target in targets:
        if average:
            out.append(np.mean([features[target], *own[target]], axis=0))
        else:
            out.append(features[target] + (np.mean(own[target], axis=0) if own[target] else 0))
    return torch.tensor(np.array(out))


@pytest.mark.parametrize("has_class", [True, False])
@pytest.mark.parametrize(
    ("settings", "dominant", "contextual"),
    [
        ({"count": 7, "contextual": 3}, 4, 3),
        ({"count": 7, "contextual": 3, "merge": "mean"}, 4, 3),
        ({"count": 9, "contextual": 5}, 4, 5),
        ({"count": 12}, 10, 2),  # 1.875
        ({"count": 3}, 2, 1),
        ({"count": 4, "contextual": 9}, 1, 3),
        ({"count": 2}, 1, 1),
        ({"count": 1}, 1, 0),
    ],
)
def test_dominant_ones_come_first_and_the_rest_is_merged_behind(
    settings, dominant, contextual, has_class
):
    way = VisionZip(**settings)

    kept = way.see(shown(has_class=has_class))

    average = way.merge == "mean"
    expected = zipped(dominant, contextual, average=average, has_class=has_class)
    assert kept.index.tolist() == list(range(way.count))
    assert len(kept.states) == way.plan(Spec(PATCHES, 3))[0] == way.count
    assert (kept.states - expected).abs().max() < 1e-5


def test_half_precision_stays_half():
    kept = VisionZip(count=7, contextual=3).see(shown(torch.bfloat16))

    assert kept.states.dtype == torch.bfloat16
    assert (kept.states - zipped(4, 3)).abs().max() < 0.05


@pytest.mark.parametrize("count", [PATCHES, 500])
def test_all_patches_go_on_as_they_are_where_there_are_no_more(count):
    kept = VisionZip(count=count).see(shown())

    assert kept.index.tolist() == list(range(PATCHES))
    assert kept.states is None
    assert VisionZip(count=count).plan(Spec(PATCHES, 3)) == (PATCHES,) * 3


@pytest.mark.parametrize(("count", "contextual"), [(64, 10), (128, 20), (192, 30), (5, 1)])
def test_ten_of_sixty_four_tokens_are_merged_ones(count, contextual):
    states, keys = random(577, 2, seed=1), random(1, 577, 2, seed=2)
    states[1:] = states[1:].abs() + 10
    table = torch.rand(1, 577, 577, generator=torch.Generator().manual_seed(0))
    way = VisionZip(count=count)

    kept = way.see(tile({22: table}, states=states, compared={22: (keys, keys)}))

    doubled = kept.states.sum(dim=1) > 35  # a target and a mean: 20 and more each
    assert len(kept.states) == count
    assert doubled.tolist() == [False] * (count - contextual) + [True] * contextual


def test_it_looks_at_the_layer_that_gives_the_features():
    assert VisionZip().looks(23) == (22,)


@pytest.mark.parametrize("budget", [1, 2, 64])
def test_a_budget_is_met(budget):
    assert VisionZip().fit(budget, Spec(576, 32)).plan(Spec(576, 32)) == (budget,) * 32
