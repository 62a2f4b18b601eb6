"""PruMerge: how many patches stand out, in what order, and what is added to them.

`merged` below is a second, plain implementation, loop by loop.

Faults planted in prumerge.py, each caught here: attention head by head; scaled by a head's width;
made to sum to one over the patches; the class token's column counted as a patch; queries' likeness
instead of keys'; dot product instead of cosine; a patch among its own neighbours; neighbours of
the kept alone; neighbours not weighted, averaged, or taken from what was merged already; the rest
averaged, in front, or of all patches; ascending order; another layer; quartiles without
interpolation; fence from the median; nothing kept; samples re-sorted, twice, with the last patch,
at a rounded step or at none; plan without the rest.
"""

import math

import numpy as np
import pytest
import torch

from tests.methods.by_hand import tile
from victorctl.methods.base import Spec
from victorctl.methods.prumerge import PruMerge, PruMergePlus

PATCHES, HEADS, WIDE = 24, 4, 3


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUERY = 2 * random(HEADS, PATCHES + 1, WIDE, seed=1)
KEY = random(HEADS, PATCHES + 1, WIDE, seed=2) * (1 + random(1, PATCHES + 1, 1, seed=3).abs())
STATES = random(PATCHES + 1, 5, seed=4)


def shown(dtype=torch.float32, *, has_class=True):
    first = 0 if has_class else 1
    other = QUERY.flip(1)[:, first:].to(dtype), KEY.flip(1)[:, first:].to(dtype)
    compared = {22: other, 23: (QUERY[:, first:].to(dtype), KEY[:, first:].to(dtype)), 24: other}
    return tile(None, states=STATES[first:].to(dtype), compared=compared, has_class=has_class)


def merged(plus=False, neighbours=5):
    """What the specification says, in numbers [tokens][features]."""
    query, key = ([np.concatenate(of[:, at]) for at in range(PATCHES + 1)]
                  for of in (QUERY.numpy(), KEY.numpy()))  # fmt: skip
    scores = [math.exp(query[0] @ key[at] / math.sqrt(HEADS * WIDE)) for at in range(PATCHES + 1)]
    attention = [score / sum(scores) for score in scores][1:]
    key, features = key[1:], STATES.numpy()[1:]
    low, high = np.percentile(attention, [25, 75])
    count = sum(a > high + 1.5 * (high - low) for a in attention)
    kept = sorted(range(PATCHES), key=lambda at: -attention[at])[:count]
    if plus:
        step = int(int(1 / (count / PATCHES)) / 3)
        kept += [at for at in range(0, PATCHES - 1, step) if at not in kept]

    def alike(one, other):
        return key[one] @ key[other] / np.linalg.norm(key[one]) / np.linalg.norm(key[other])

    out = []
    for at in kept:
        others = [other for other in range(PATCHES) if other != at]
        near = sorted(others, key=lambda other: -alike(at, other))[:neighbours]
        out.append(features[at] + sum(attention[other] * features[other] for other in near))
    out.append(sum(attention[at] * features[at] for at in range(PATCHES) if at not in kept))
    return torch.tensor(np.array(out))


@pytest.mark.parametrize(
    ("way", "plus", "tokens"), [(PruMerge, False, 5), (PruMergePlus, True, 17)]
)
def test_outliers_gather_their_neighbours_and_the_rest_is_one_token(way, plus, tokens):
    kept = way(neighbours=5).see(shown())

    assert kept.index.tolist() == list(range(tokens))
    assert (kept.states - merged(plus)).abs().max() < 1e-5


def test_half_precision_stays_half():
    kept = PruMerge(neighbours=5).see(shown(torch.bfloat16))

    assert kept.states.dtype == torch.bfloat16
    assert (kept.states - merged()).abs().max() < 0.05


@pytest.mark.parametrize("last", [11.8, 11.4])  # the fence is at 6.25 + 1.5 * 3.5 = 11.5
def test_one_patch_is_kept_even_if_none_stands_out(last):
    attention = torch.tensor([last, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])

    assert PruMerge().choose(attention).tolist() == [0]


def test_quartiles_lie_between_patches():
    # At places 1.75 and 5.25 of 0 to 7: 2.75 and 7.475. Whole places would be 2 and 6, or 3 and 11.9.
    attention = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 11.9, 12.2])

    assert PruMerge().outliers(attention) == 1  # above 14.56: none
    assert PruMerge(fence=0.9).outliers(attention) == 2  # above 11.73
    assert PruMerge(fence=0.94).outliers(attention) == 1  # above 11.92
    assert PruMerge(fence=0.9).choose(attention).tolist() == [7, 6]  # the largest first


def attention_of(patches, outliers):
    """Patches that attend evenly, but for some that stand out, the last of these the most."""
    attention = torch.linspace(1, 2, patches)
    attention[outliers] = torch.arange(len(outliers)) + 100.0
    return attention


@pytest.mark.parametrize(
    ("patches", "outliers", "chosen"),
    [
        (40, [7, 6, 33, 5], [5, 33, 6, 7, *(at for at in range(0, 39, 3) if at not in (6, 33))]),
        (40, [7, 6, 33, 5, 1], [1, 5, 33, 6, 7, *(at for at in range(0, 39, 2) if at != 6)]),
        (2, [], [1, 0]),  # 2 / 1 / 3 is no step
        (1, [], [0]),
    ],
)
def test_plus_samples_every_so_many_th_patch_but_the_last(patches, outliers, chosen):
    assert PruMergePlus().choose(attention_of(patches, outliers)).tolist() == chosen


@pytest.mark.parametrize(("outliers", "samples"), [(32, 96), (40, 144)])
def test_plus_samples_as_many_as_the_papers_shares_give(outliers, samples):
    places = torch.arange(1, 1 + outliers) * 12 - 1  # no multiple of 4 or 6

    chosen = PruMergePlus().choose(attention_of(576, places.tolist()))

    assert len(chosen) == outliers + samples


@pytest.mark.parametrize("way", [PruMerge, PruMergePlus])
def test_one_patch_goes_on_as_it_is(way):
    query, key = random(2, 2, 3, seed=1).float(), random(2, 2, 3, seed=2).float()
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    kept = way().see(tile(None, states=states, compared={23: (query, key)}))

    assert kept.states.tolist() == [[3.0, 4.0]]


def test_without_a_class_token_the_mean_over_all_patches_stands_for_it():
    kept = PruMerge(neighbours=5).see(shown(has_class=False))
    query, key = (of[:, 1:].transpose(0, 1).flatten(1) for of in (QUERY, KEY))
    received = (query @ key.T / (HEADS * WIDE) ** 0.5).softmax(dim=-1).mean(dim=0)
    rest = received.argsort()[: PATCHES - len(kept.index) + 1]

    assert (kept.states[-1] - received[rest] @ STATES[1:][rest]).abs().max() < 1e-5
    assert any("class token" in what for what in PruMerge.unverified)


def test_it_looks_behind_the_features_and_the_picture_decides_what_it_spends():
    llava = Spec(576, 32)

    assert PruMerge().looks(23) == (23,)
    assert PruMerge().plan(llava) == (41,) * 32  # 6.9 % and one
    assert PruMergePlus().plan(llava) == (40 + 134 + 1,) * 32  # of 144 samples 10 stand out
    assert PruMerge().plan(Spec(1, 1)) == PruMergePlus().plan(Spec(1, 1)) == (1,)
    assert PruMerge().fit(8, llava) == PruMerge()
