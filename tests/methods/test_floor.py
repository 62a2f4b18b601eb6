"""The simple methods: which tokens they keep, and what they put into their places.

Faults planted and caught: the first tokens, a draw in its own order, all pictures as one; a cell's
sum, its first token, its corner; a square too large; a picture charged
where none is shown.
"""

import pytest
import torch

from tests.methods.acting import PROMPTS, ROWS, Spying, case, run
from tests.modeling.laws import inputs
from victorctl.errors import VictorError
from victorctl.methods import FLOOR, METHODS, made, method
from victorctl.methods.base import Prompt, Spec, grid_of
from victorctl.methods.floor import (
    Downsampled,
    GridTokens,
    LastTokens,
    NoImage,
    NoRegisters,
    PooledTokens,
    RandomTokens,
    cells,
)

WIDTH = 1


def prompt(images, seed=0):
    """Show a word, visual tokens of pictures with these numbers, and a word: states are places."""
    length = len(images) + 2
    return Prompt(
        layer=2,
        states=torch.arange(float(length))[:, None],
        visual=torch.arange(1, length - 1),
        image=torch.tensor(images),
        attend=None,
        generator=torch.Generator().manual_seed(seed),
        store={},
    )


FOUR = prompt([0, 0, 0, 0])
TOUCHING = prompt([0, 0, 1, 1, 1])  # two pictures with nothing between


# ---- Worked examples -----------------------------------------------------------------------------


def test_last_keeps_the_last_tokens_of_each_picture():
    way = LastTokens(count=2)

    assert way.reduce(FOUR).index.tolist() == [2, 3]
    assert way.reduce(TOUCHING).index.tolist() == [0, 1, 3, 4]
    assert way.reduce(FOUR).states is None


def test_random_keeps_so_many_tokens_of_each_picture():
    kept = RandomTokens(count=2).reduce(TOUCHING).index.tolist()

    assert kept[:2] == [0, 1]  # both of the picture of two
    assert len(kept[2:]) == 2
    assert set(kept[2:]) < {2, 3, 4}


def test_the_draw_is_even_over_the_picture():
    way, picture = RandomTokens(count=2), [0] * 8
    drawn = torch.stack([way.reduce(prompt(picture, seed)).index for seed in range(1000)])

    counts = drawn.flatten().bincount(minlength=8)  # each is expected 1000 x 2/8 = 250 times
    assert (counts - 250).abs().max() < 55  # give or take 14
    assert torch.equal(drawn, drawn.sort(dim=1).values)


def test_grid_keeps_the_middle_of_each_cell():
    # 5 x 5 tokens in 2 x 2 cells: rows and columns 0-2 and 3-4. The middle of 3 x 3 is its own;
    # of two that are as near, the first is taken.
    kept = GridTokens(count=4).reduce(prompt([0] * 25)).index.tolist()

    assert kept == [6, 8, 16, 18]


def test_pool_puts_means_into_the_place_of_the_last_token_of_a_cell():
    # The picture is a grid of 2 x 2, tokens 1 2 / 3 4. Two cells are one row of two, so its columns
    # are averaged: (1 + 3) / 2 and (2 + 4) / 2.
    kept = PooledTokens(count=2).reduce(FOUR)
    assert kept.index.tolist() == [2, 3]
    assert kept.states.tolist() == [[2.0], [3.0]]

    # The picture of two stays, and of that of three, a strip 3 4 5, the halves are 3 4 and 5.
    kept = PooledTokens(count=2).reduce(TOUCHING)
    assert kept.index.tolist() == [0, 1, 3, 4]
    assert kept.states.tolist() == [[1.0], [2.0], [3.5], [5.0]]


def test_pool_puts_a_cells_mean_where_its_own_last_token_was():
    # 3 x 4 tokens in 2 x 2 cells: the first cell ends with token 5, behind the second's token 3.
    kept = PooledTokens(count=4).reduce(prompt([0] * 12))

    assert kept.index.tolist() == [5, 7, 9, 11]
    ends = [(0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7) / 4, (8 + 9) / 2, (10 + 11) / 2]
    assert kept.states.flatten().tolist() == [1 + place for place in ends]


def test_nothing_goes_on_without_registers():
    assert NoRegisters(layer=2).reduce(FOUR).index.tolist() == []
    assert NoRegisters(layer=2).plan(Spec(16, 4)) == (16, 16, 0, 0)
    assert NoImage().plan(Spec(16, 4)) == (0, 0, 0, 0)
    assert not NoImage.pictures


@pytest.mark.parametrize(("count", "side"), [(1, 1), (8, 2), (9, 3), (16, 4), (99, 4)])
def test_a_smaller_picture_is_a_square_of_no_more_patches_than_asked_for(count, side):
    way = Downsampled(count=count)

    assert way.side(4) == side
    assert way.plan(Spec(16, 2)) == (side**2,) * 2


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (4, 9, [0, 1, 2, 3]),  # fewer tokens than cells: each is its own
        (12, 4, [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]),  # 3 x 4 tokens, 2 x 2 cells
        (16, 8, [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]),  # 2 x 4, not 1 x 8 or 4 x 2
        (5, 2, [0, 0, 0, 1, 1]),  # a strip
        (9, 7, [0, 0, 1, 2, 3, 3, 4, 5, 6]),  # no 7 cells in 3 x 3: cut in reading order
    ],
)
def test_cells_are_a_grid_of_the_picture(length, count, expected):
    assert list(cells(length, count)) == expected


def test_tokens_are_read_as_the_most_nearly_square_grid():
    assert [grid_of(length) for length in (1, 7, 12, 16, 576)] == [
        (1, 1), (1, 7), (3, 4), (4, 4), (24, 24)
    ]  # fmt: skip


# ---- In a model ----------------------------------------------------------------------------------


def kept_in(name, rows, seed=0):
    """Tell which columns go on, row by row."""
    model = case("llava")
    engine = Spying(made(name, count=3, layer=1, seed=seed), model.victor)
    run(model, engine, inputs(model, *PROMPTS), rows)
    tokens = engine.by_layer()[-1]
    pairs = zip(tokens.origin, tokens.valid, strict=True)
    return [origin[valid].tolist() for origin, valid in pairs]


def test_the_draw_depends_on_the_rows_number_and_the_seed_and_not_on_the_place_in_the_batch():
    first = kept_in("random", ROWS)

    assert kept_in("random", ROWS) == first
    assert kept_in("random", [ROWS[3], *ROWS[:3]])[0] != first[0]
    assert kept_in("random", ROWS, seed=1)[0] != first[0]
    pictures = [place for place in first[3] if place >= 2]
    apart = {place % 16 for place in pictures if place < 18}, {p % 16 for p in pictures if p >= 18}
    assert apart[0] != apart[1]  # of two pictures, each has a draw of its own


@pytest.mark.parametrize("name", ["random", "last", "grid", "pool"])
def test_each_picture_of_a_prompt_keeps_as_many(name):
    lengths = [len(columns) for columns in kept_in(name, ROWS)]

    assert lengths == [4 + 3, 3, 5 + 2 * 3, 3 + 2 * 3]


# ---- The table -----------------------------------------------------------------------------------


def test_a_method_is_made_with_what_it_takes_of_two_numbers():
    assert made("random", count=5, layer=2, seed=3) == RandomTokens(count=5, layer=2, seed=3)
    assert made("random", count=None, layer=None, seed=0) == RandomTokens()
    assert made("no-registers", count=5, layer=2, seed=3) == NoRegisters(layer=2, seed=3)
    assert made("downsample", count=9, layer=2, seed=3) == Downsampled(count=9, seed=3)


@pytest.mark.parametrize("name", ["random", "last", "grid", "pool", "downsample"])
def test_the_knob_is_brought_to_a_budget(name):
    start, spec = method(name)(), Spec(16, 6)
    way = start.fit(9, spec)

    assert way.mean(spec) == 9
    assert type(way).model_fields.keys() >= {"count", "seed"}


def test_the_floor_is_in_the_table():
    assert set(FLOOR) < set(METHODS)


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(VictorError, match=r"'fast'\n  fix: did you mean fastv\? use one of: down"):
        method("fast")
    with pytest.raises(VictorError, match=r"'zzz'\n  fix: use one of: downsample, elip"):
        method("zzz")
