"""SparseVLM: words that matter rate the visual tokens at three layers; some of the rest are merged.

`reduced` and `clustered` below are a second, plain implementation, loop by loop.

Faults planted in sparsevlm.py, each caught here: raters by the softmax over visual tokens, without
one, by the cosine, by the best visual token, with the text before the picture, chosen anew at every
stage; every word a rater, or the last; raters not moved when tokens are dropped; one head, the best
head; a rater's best instead of the mean; a layer later; order of the scores; budgets of another
stage, or not by the size of the picture; the tokens left, not those there were, as this size;
merged: the least of the pruned, all of them, one fewer; clusters by tenths of the pruned, one
fewer; the token left out of its neighbours; one neighbour more; densities of distances that are not
squared; width left out; nearest denser taken for the nearest, or the nearest less dense; the
densest left without distance; centres by density alone; nearest by the cosine; a centre in
another's cluster; random numbers that differ between calls; sum for mean; merged in front, or among
the kept; v2 that merges, or has all heads; rank unscaled, rounded, uncapped; a budget sought up to
the tokens of a small picture; plan without the merged.
"""

import math

import numpy as np
import pytest
import torch

from tests.methods.by_hand import prompt
from victorctl.methods.base import Spec
from victorctl.methods.sparsevlm import SparseVLM, cluster

PREFIX, WIDE, HEADS = 2, 6, 16


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clustered(points, count, merge):
    """Density peaks as the specification has them [count][features]."""
    n, wide = len(points), len(points[0])
    distance = [[math.dist(a, b) / math.sqrt(wide) for b in points] for a in points]
    density = [
        math.exp(-sum(d * d for d in sorted(row)[:count]) / len(row[:count])) for row in distance
    ]
    most = max(max(row) for row in distance)
    apart = []
    for at in range(n):
        denser = [distance[at][other] for other in range(n) if density[other] > density[at]]
        apart.append(min(denser, default=most))
    centres = sorted(range(n), key=lambda at: -density[at] * apart[at])[:count]
    own = {centre: [] for centre in centres}
    for at in range(n):
        near = at if at in own else min(centres, key=lambda centre: distance[at][centre])
        own[near].append(points[at])
    return [(np.mean if merge == "mean" else np.sum)(own[centre], axis=0) for centre in centres]


def raters_of(visual, words):
    """Numbers of the words that rate."""
    scores = np.exp(visual @ words.T)
    rating = (scores / scores.sum(axis=1, keepdims=True)).mean(axis=0)
    return [at for at in range(len(words)) if rating[at] > rating.mean()]


def reduced(visual, rows, keep, merge):
    """What goes on: the kept, what is merged behind them, and the places that both take.

    Args:
        visual: States [v][features].
        rows: What raters pay to them [heads, raters, v].
        keep: How many are kept.
        merge: `mean`, `sum`, or None for nothing.
    """
    score, shown = rows.mean(axis=(0, 1)), len(visual)
    order = sorted(range(shown), key=lambda at: -score[at])
    kept, pruned = sorted(order[:keep]), order[keep:]
    states = [visual[at] for at in kept]
    if merge is None:
        return kept, states
    taken = [visual[at] for at in sorted(pruned[: int(0.3 * len(pruned)) + 1])]
    merged = clustered(taken, int(len(taken) / 10) + 1, merge)
    free = sorted(pruned)[len(pruned) - len(merged) :]
    return sorted(kept + free), states + merged


def walk(way, visual, *, words=5, heads=HEADS, plain=None, dtype=torch.float32):  # noqa: PLR0913
    """Go through all layers that reduce; yields what each keeps, compared with the plain way."""
    states = random(PREFIX + visual + words, WIDE, seed=visual).to(dtype)
    store, shown, raters = {}, visual, None
    for stage, layer in enumerate(way.before(32)):
        length = len(states)
        tables = {
            at: torch.rand(heads, length, length, generator=torch.Generator().manual_seed(at))
            for at in {max(0, layer - 1), layer}
        }
        places = list(range(PREFIX, PREFIX + shown))
        kept = way.reduce(prompt(tables, layer=layer, visual=places, states=states, store=store))
        own = states[PREFIX : PREFIX + shown].double().numpy()
        if layer == 0:
            raters = raters_of(own, states[PREFIX + shown :].double().numpy())
            assert 1 <= len(raters) < words
            assert kept.index.tolist() == list(range(shown))
            assert kept.states is None
            continue
        if plain:
            rows = tables[layer - 1][:, [PREFIX + shown + rater for rater in raters]]
            rows = rows[..., PREFIX : PREFIX + shown].double().numpy()
            index, expected = plain(own, rows, stage - 1)
            found = own[kept.index] if kept.states is None else kept.states.double().numpy()
            assert kept.index.tolist() == index
            assert np.abs(found - np.array(expected)).max() < (1e-5 if dtype.itemsize > 2 else 0.05)
        visible = states[PREFIX : PREFIX + shown][kept.index]
        visible = visible if kept.states is None else kept.states
        assert visible.dtype == dtype
        states = torch.cat([states[:PREFIX], visible, states[PREFIX + shown :]])
        shown = len(visible)
        yield shown


# ---- The three stages ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_stages_keep_what_raters_attend_to_and_merge_some_of_the_rest(merge, dtype):
    # Of 72 tokens, an eighth of 576: 8 of 72 are kept and 20 of 64 pruned make 3; then 4 and 1 of
    # 7, 2 and 1 of 3.
    way, keep = SparseVLM(budget=64, merge=merge), (8, 4, 2)

    counts = list(
        walk(way, 72, dtype=dtype, plain=lambda own, rows, at: reduced(own, rows, keep[at], merge))
    )

    assert counts == [11, 5, 3]
    assert way.plan(Spec(72, 32)) == (72,) * 3 + (11,) * 4 + (5,) * 9 + (3,) * 16


def test_version_2_reads_the_14_heads_that_look_at_the_picture_most_and_merges_nothing():
    def plain(own, rows, at):
        best = sorted(range(16), key=lambda head: -rows[head].sum())[:14]
        return reduced(own, rows[best], (8, 4, 2)[at], None)

    way = SparseVLM(version="v2", budget=64)

    assert list(walk(way, 72, plain=plain)) == [8, 4, 2]
    assert way.plan(Spec(72, 32)) == (72,) * 3 + (8,) * 4 + (4,) * 9 + (2,) * 16
    assert list(walk(way, 72, heads=2)) == [8, 4, 2]


@pytest.mark.parametrize(
    ("version", "budget", "counts", "mean"),
    [
        ("v1", 192, (309, 204, 113), 206.5),
        ("v1", 128, (312, 117, 39), 145.4),
        ("v1", 96, (249, 55, 27), 114.1),
        ("v1", 64, (82, 32, 18), 82.3),
        ("v2", 192, (300, 200, 118), None),
        ("v2", 128, (238, 108, 60), None),
        ("v2", 96, (246, 54, 28), None),
        ("v2", 64, (66, 34, 20), None),
    ],
)
def test_published_counts_leave_the_stages(version, budget, counts, mean):
    way, llava = SparseVLM(version=version, budget=budget), Spec(576, 32)
    first, second, third = counts

    assert list(walk(way, 576)) == [first, second, third]
    assert way.plan(llava) == (576,) * 3 + (first,) * 4 + (second,) * 9 + (third,) * 16
    if mean:
        assert way.mean(llava) == pytest.approx(mean, abs=0.06)
        assert way.fit(way.mean(llava), llava).plan(llava) == way.plan(llava)


# ---- Raters ----

# Four visual tokens (9, 0), (0, .6) three times, and words a (1, 0), b (0, 1), c (0, 0). Of the
# softmax over words the means are .45 .36 .20: a and b rate. Without a softmax a alone would, or
# over the root of the width; of cosines b alone; of the softmax over visual tokens none. The text
# before, (0, 5), does not count.
STATES = torch.tensor([[0, 5], [9, 0], [0, 0.6], [0, 0.6], [0, 0.6], [1, 0], [0, 1], [0, 0]])
# They pay on average .25 .125 .2 .225; a alone would keep {0, 1}, b {2, 3}, all three {0, 2}; the
# better of both {0, 2}.
PAID = torch.zeros(1, 8, 8)
PAID[0, 0, 1:5] = torch.tensor([0.0, 0.9, 0.9, 0.0])
PAID[0, 5:, 1:5] = torch.tensor([[0.5, 0.2, 0.0, 0.15], [0.0, 0.05, 0.4, 0.3], [0, 0, 0.9, 0]])


def kept_of(states, table, visual, **settings):
    way, store = SparseVLM(**settings), {}
    shown = {"visual": visual, "states": states, "store": store}
    way.reduce(prompt({}, layer=0, **shown))
    return way.reduce(prompt({2: table}, layer=3, **shown))


def test_raters_are_the_words_that_visual_tokens_resemble_more_than_most():
    kept = kept_of(STATES, PAID, [1, 2, 3, 4])  # 300 of 576 are 2 of 4; of the others 2 is merged

    assert torch.equal(kept.states, STATES[[1, 4, 3]])
    assert kept.index.tolist() == [0, 2, 3]  # the last free place is 2, so what was there moves up


def test_v2_keeps_tokens_where_they_were():
    kept = kept_of(STATES, PAID, [1, 2, 3, 4], version="v2")

    assert kept.index.tolist() == [0, 3]
    assert kept.states is None


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ([], 4),  # no text behind the picture: the last token
        ([[1, 0]], 5),  # one word is no more than the mean
        ([[1, 0], [1, 0], [1, 0]], 7),  # nor are equal ones
    ],
)
def test_where_no_word_stands_out_the_last_token_rates(words, row):
    states = torch.cat([STATES[:5], torch.tensor(words).reshape(-1, 2).float()])
    table = torch.zeros(1, len(states), len(states))
    table[..., 1:5] = torch.tensor([0.0, 0.3, 0.0, 0.2])
    table[0, row, 1:5] = torch.tensor([0.1, 0.0, 0.3, 0.0])

    kept = kept_of(states, table, [1, 2, 3, 4], version="v2")

    assert kept.index.tolist() == [0, 2]


# ---- How many ----


def test_one_visual_token_stays():
    assert list(walk(SparseVLM(budget=1), 1)) == [1, 1, 1]
    assert SparseVLM(budget=1).plan(Spec(1, 32)) == (1,) * 32


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("visual", [2, 3, 16])
def test_plans_what_it_keeps_of_small_pictures(visual, version):
    for budget in (1, 64, 192, 400, 576):
        way = SparseVLM(budget=budget, version=version)
        left = list(walk(way, visual))

        assert [way.plan(Spec(visual, 32))[at] for at in (3, 7, 16)] == left
        assert all(count >= 1 for count in left)


def test_every_stage_drops_one_at_least():
    assert list(walk(SparseVLM(budget=576, version="v2"), 16)) == [15, 14, 13]
    assert list(walk(SparseVLM(budget=576), 16)) == [16, 16, 16]  # that one is merged with itself


@pytest.mark.parametrize(
    ("rows", "visual", "count"),
    [
        ([[0.5, 0.2], [0.1, 0.3]], 2, 2),  # rank 2, as many as there are: all stay
        ([[0.5, 0.2], [0.5, 0.2]], 2, 1),  # 13, and one fewer than there are at most
        ([[0.1] * 20, [0.2] * 20], 20, 13),  # rank 1: 13.5
        ([[0.1] * 30, [0.1, 0.2] * 15], 30, 27),
    ],
)
def test_the_papers_rule_keeps_by_the_rank_of_the_attention(rows, visual, count):
    both = torch.tensor([[9.0, 0.0], [0.0, 9.0]]).repeat(visual, 1)[:visual]  # a and b rate
    states = torch.cat([STATES[:1], both, STATES[5:]])
    table = torch.zeros(2, len(states), len(states))
    table[0, -3:-1, 1 : visual + 1] = torch.tensor(rows)
    table[1] = table[0] * 0.1
    places = list(range(1, visual + 1))

    kept = kept_of(states, table, places, version="v2", mode="rank")

    assert len(kept.index) == count
    assert SparseVLM(mode="rank").plan(Spec(visual, 32)) == (visual,) * 32
    assert SparseVLM(mode="rank").fit(1, Spec(visual, 32)) == SparseVLM(mode="rank")


@pytest.mark.parametrize(("visual", "budget"), [(16, 8), (576, 100), (2880, 700), (256, 60)])
def test_a_budget_is_met_for_pictures_of_any_size(visual, budget):
    spec = Spec(visual, 32)

    assert SparseVLM().fit(budget, spec).mean(spec) == pytest.approx(budget, rel=0.05)


# ---- Settings ----


@pytest.mark.parametrize(
    ("layers", "cuts"),
    [(32, (3, 7, 16)), (28, (3, 6, 14)), (40, (4, 9, 20)), (4, (1, 2, 3)), (2, (1,)), (1, (1,))],
)
def test_stages_are_at_the_same_shares_of_any_depth_and_never_before_the_first_layer(layers, cuts):
    assert SparseVLM().before(layers) == (0, *cuts)
    assert SparseVLM().reads(layers) == tuple(cut - 1 for cut in cuts)


def test_positions_are_the_versions_unless_they_are_set():
    assert SparseVLM().positions == "compact"
    assert SparseVLM(version="v2").positions == "original"
    assert SparseVLM(positions="original").positions == "original"
    assert SparseVLM(**SparseVLM(version="v2").model_dump()) == SparseVLM(version="v2")


# ---- Merging ----


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_clusters_form_around_peaks_of_density(merge):
    for seed in range(8):
        points = random(25, 3, seed=seed) * torch.tensor([3.0, 1.0, 0.3])
        expected = np.array(clustered(points.tolist(), 3, merge))

        assert np.abs(cluster(points, 3, merge).numpy() - expected).max() < 1e-4


def test_two_heaps_become_their_means():
    heaps = torch.tensor([[0.0], [0.1], [0.2], [8.0], [8.4]])

    assert cluster(heaps, 2, "mean").flatten().tolist() == pytest.approx([0.1, 8.2])
    assert cluster(heaps, 2, "sum").flatten().tolist() == pytest.approx([0.3, 16.4])


def test_of_equally_dense_tokens_the_first_are_peaks_each_time():
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])

    for _ in range(8):
        assert cluster(corners, 2, "mean").tolist() == [[0.5, 0.0], [0.5, 1.0]]


def test_equal_tokens_leave_no_cluster_empty():
    assert torch.equal(cluster(torch.ones(20, 4), 3, "mean"), torch.ones(3, 4))


def test_large_states_leave_small_distances():
    heaps = torch.tensor([0.0, 0.1, 0.2, 0.8, 0.9]).repeat(6)
    large = torch.cat([heaps[:, None], torch.linspace(1000, 4000, 8).repeat(30, 1)], dim=1)

    means = cluster(large, 2, "mean")[:, 0].sort().values

    assert means.tolist() == pytest.approx([0.1, 0.85])
