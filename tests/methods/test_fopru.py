"""FoPru keeps the patches, or the rows of patches, that receive most attention.

Faults planted in fopru.py, each caught here: another layer; either head alone; attention of the
patches without the class token's, and of the class token alone; what patches pay instead of what
they receive; order of the scores; a row's best patch instead of its sum; columns instead of rows;
rows rounded up, and down; no row at all; plan of the rank's rule for rows.
"""

import pytest
import torch

from tests.methods.by_hand import tile
from victorctl.methods.base import Spec
from victorctl.methods.fopru import FoPru

# Two heads; the class token first, then 2 x 3 patches, each of which pays the same as the others.
CLASS = [[0.10, 0.0, 0.0, 0.70, 0.0, 0.0, 0.20], [0.0, 0.0, 0.0, 0.20, 0.0, 0.0, 0.80]]
PATCH = [[0.18, 0.4, 0.0, 0.22, 0.0, 0.2, 0.0], [0.30, 0.0, 0.2, 0.10, 0.0, 0.4, 0.0]]
# Received, of the mean over heads, from all seven: 1.2 .6 1.41 0 1.8 .5; from the patches alone:
# 1.2 .6 .96 0 1.8 0; in head 0: 2.4 0 2.02 0 1.2 .2; in head 1: 0 1.2 .8 0 2.4 .8.
TABLE = torch.tensor([[row] + [patch] * 6 for row, patch in zip(CLASS, PATCH, strict=True)])
OTHER = torch.tensor([[[0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0]] * 7] * 2)
SHOWN = tile({0: OTHER, 1: TABLE, 2: OTHER}, layers=2)


@pytest.mark.parametrize(
    ("settings", "survivors"),
    [
        ({"count": 2}, [2, 4]),
        ({"count": 2, "score": "class"}, [2, 5]),
        ({"count": 1, "score": "class"}, [5]),
        ({"count": 9}, [0, 1, 2, 3, 4, 5]),
        ({"strategy": "row", "count": 3}, [0, 1, 2]),  # 3.21 against 2.3, which has the best patch
        ({"strategy": "row", "count": 3, "score": "class"}, [3, 4, 5]),  # .45 against .5
        ({"strategy": "row", "count": 1}, [0, 1, 2]),
        ({"strategy": "row", "count": 4}, [0, 1, 2]),
        ({"strategy": "row", "count": 5}, [0, 1, 2, 3, 4, 5]),
        ({"strategy": "row", "count": 90}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_keeps_patches_or_whole_rows_in_reading_order(settings, survivors):
    way = FoPru(**settings)

    kept = way.see(SHOWN)

    assert kept.index.tolist() == survivors
    assert kept.states is None
    assert way.plan(Spec(6, 4)) == (len(survivors),) * 4


def test_without_a_class_token_both_scores_are_the_attention_received():
    table = torch.tensor([[[0.1, 0.1, 0.4, 0.4]] + [[0.4, 0.4, 0.1, 0.1]] * 3])
    shown = tile({0: table}, has_class=False, layers=1)

    for score in ("class", "received"):
        assert FoPru(count=2, score=score).see(shown).index.tolist() == [0, 1]


def test_one_patch_stays():
    shown = tile({0: [[[0.9, 0.1]] * 2]}, layers=1)

    for strategy in ("rank", "row"):
        assert FoPru(count=1, strategy=strategy).see(shown).index.tolist() == [0]


def test_a_budget_finds_its_patches_or_the_nearest_number_of_rows():
    llava = Spec(576, 32)

    assert FoPru().fit(144, llava).count == 144
    assert FoPru(strategy="row").fit(130, llava).plan(llava)[0] == 120  # 5 rows of 24; 6 are 144


def test_it_says_what_of_it_is_not_known():
    assert FoPru().looks(23) == (22,)
    assert len(FoPru.unverified) == 2
