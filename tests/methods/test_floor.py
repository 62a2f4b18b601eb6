"""The methods of the floor: which tokens they keep, and the laws that hold for every method."""

import copy
from contextlib import nullcontext

import pytest
import torch

from tests.tiny import VISUAL_TOKENS, tiny_model, tiny_picture, tiny_processor
from victorctl.errors import VictorError
from victorctl.methods import FLOOR, METHODS, method
from victorctl.methods.base import find_visual
from victorctl.methods.floor import LastTokens, PooledTokens, RandomTokens, cells, scramble
from victorctl.modeling_victor import TEXT, VISUAL, Tokens, VictorLlava

K = 2
KEEPERS = ["random", "last", "pool"]  # these keep something, and everything if they may
SELECTORS = ["random", "last"]  # these change no state
PROMPTS = [  # no image, one, two apart, two that touch; lengths differ
    ("what is red ?", 0),
    ("<image> what is this ?", 1),
    ("the <image> or the <image> look", 2),
    ("<image><image> which one do you see ?", 2),
]
ROWS = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model():
    """A Victor model whose text model sees the mask in every layer."""
    native = tiny_model()
    config = copy.deepcopy(native.config)
    adapter = {"rank": 2, "alpha": 2.0, "layers": "all"}
    settings = {"registers": 3, "drop_layer": K, "positions": "overlay", "adapter": adapter}
    config.victor = settings
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        victor = VictorLlava(config).eval()
        for name, parameter in victor.named_parameters():
            if name.endswith(".up"):
                torch.nn.init.normal_(parameter)
    victor.load_state_dict(victor.state_dict() | native.state_dict())
    victor.generation_config = native.generation_config
    return victor


@pytest.fixture(scope="module")
def native():
    model = tiny_model()
    model.set_attn_implementation("eager")
    return model


def inputs_of(prompts):
    pictures = [[tiny_picture(10 * len(text) + i) for i in range(n)] for text, n in prompts]
    processor = tiny_processor()
    chosen = {"images": [group for group in pictures if group]} if any(pictures) else {}
    return processor(
        text=[text for text, _ in prompts], **chosen, padding=True, return_tensors="pt"
    )


@torch.no_grad()
def last_logits(model, prompts, way=None, rows=ROWS):
    with way.acting(model, rows) if way else nullcontext():
        return model(**inputs_of(prompts)).logits[:, -1]


def describe(kinds, images):
    """Make tokens [b, t] of given kinds and image numbers; column and position are one."""
    kind, image = torch.tensor(kinds), torch.tensor(images)
    column = torch.arange(kind.shape[1]).expand_as(kind)
    return Tokens(kind, kind >= 0, column, column, torch.full_like(kind, -1), image)


# ---- Worked examples -----------------------------------------------------------------------------

T, V = TEXT, VISUAL
TWO_ROWS = describe(
    [[T, V, V, V, V, T], [V, V, V, V, V, T]],
    [[-1, 0, 0, 0, 0, -1], [1, 1, 2, 2, 2, -1]],  # in the second row two images touch
)
STATES = torch.arange(12.0).view(2, 6, 1)  # a state of width 1: ten times nothing, its own place


def kept_columns(tokens):
    pairs = zip(tokens.position.tolist(), tokens.valid.tolist(), strict=True)
    return [[column for column, valid in zip(*row, strict=True) if valid] for row in pairs]


def test_visual_tokens_are_numbered_image_by_image():
    places = find_visual(TWO_ROWS)

    assert places.flat.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert places.index.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert places.length.tolist() == [4, 4, 4, 4, 2, 2, 3, 3, 3]
    assert places.row.tolist() == [0] * 4 + [1] * 5
    assert places.slot.tolist() == [0] * 4 + [0] * 2 + [1] * 3


def test_last_keeps_the_last_tokens_of_each_image():
    _, tokens = LastTokens(count=2, seed=0).reduce(STATES, TWO_ROWS, rows=[0, 0])

    assert kept_columns(tokens) == [[0, 3, 4, 5], [0, 1, 3, 4, 5]]


def test_random_keeps_so_many_tokens_of_each_image():
    hidden, tokens = RandomTokens(count=2, seed=0).reduce(STATES, TWO_ROWS, rows=[0, 0])
    first, second = kept_columns(tokens)

    assert len(first) == 4
    assert {0, 5} < set(first)
    assert [column for column in second if column < 2] == [0, 1]  # both of the image of two
    assert len([column for column in second if 2 <= column < 5]) == 2
    assert hidden.squeeze(-1).tolist()[1] == [6.0 + column for column in second]


def test_pool_puts_means_into_the_place_of_the_last_token_of_a_cell():
    # The first row's image is a grid of 2 x 2, tokens 1 2 / 3 4. Two cells are one row of two, so
    # its columns are averaged: (1 + 3) / 2 and (2 + 4) / 2. In the second row the image of two
    # stays, and of that of three, a strip 8 9 10, the halves are 8 9 and 10.
    hidden, tokens = PooledTokens(count=2, seed=0).reduce(STATES, TWO_ROWS, rows=[0, 0])

    assert kept_columns(tokens) == [[0, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert hidden.squeeze(-1)[0, -4:].tolist() == [0.0, 2.0, 3.0, 5.0]
    assert hidden.squeeze(-1)[1].tolist() == [6.0, 7.0, 8.5, 10.0, 11.0]


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


def test_the_draw_is_splitmix64():
    # The generator's first two numbers from seed 0, as its authors publish them.
    state = torch.tensor([0, 0x9E3779B97F4A7C15 - 2**64])

    assert [number % 2**64 for number in scramble(state).tolist()] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
    ]


def test_the_draw_is_even_over_the_image_and_differs_between_rows_images_and_seeds():
    row = [T, *[V] * 8, *[V] * 8]
    tokens = describe([row] * 500, [[-1, *[2 * i] * 8, *[2 * i + 1] * 8] for i in range(500)])
    hidden = torch.zeros(500, 17, 1)

    def draw(seed, first_row):
        way = RandomTokens(count=2, seed=seed)
        _, kept = way.reduce(hidden, tokens, rows=range(first_row, first_row + 500))
        return kept.position[:, 1:]  # [row, 2 images x 2]

    drawn = draw(0, 0)
    counts = drawn.flatten().bincount(minlength=17)[1:]

    assert torch.equal(draw(0, 1)[:-1], drawn[1:])  # the row's number decides, not its place
    assert (draw(0, 1) == drawn).float().mean() < 0.5
    assert (draw(1, 0) == drawn).float().mean() < 0.5
    assert (drawn[:, :2] == drawn[:, 2:] - 8).float().mean() < 0.5
    # Each of 16 places is expected 500 x 2/8 = 125 times, give or take 10.
    assert counts.min() > 85
    assert counts.max() < 165


# ---- Laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEEPERS)
def test_keeping_everything_gives_the_logits_of_the_base(model, native, name):
    way = method(name)(count=VISUAL_TOKENS, seed=0)

    with torch.no_grad(), way.acting(model, ROWS):
        ours = model(**inputs_of(PROMPTS)).logits
        base = native(**inputs_of(PROMPTS)).logits
    valid = inputs_of(PROMPTS)["attention_mask"].bool()

    assert (ours - base)[valid].abs().max() < 1e-4
    assert base[valid].std() > 1


@pytest.mark.parametrize("name", FLOOR)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_survivors_are_unique_in_order_never_text_and_as_many_as_counted(model, name, count):
    seen = []
    way = method(name)(count=count, seed=0)
    with way.acting(model, ROWS):
        reduce = model.victor.reduce

        def spy(hidden, tokens):
            seen.append((tokens, reduce(hidden, tokens)[1]))
            return reduce(hidden, tokens)

        model.victor.reduce = spy
        with torch.no_grad():
            model(**inputs_of(PROMPTS))
    ((before, after),) = seen

    for row, (_, images) in enumerate(PROMPTS):
        origin = after.origin[row][after.valid[row]]
        assert (origin.diff() > 0).all()
        visual = after.kind[row][after.valid[row]] == VISUAL
        assert visual.sum() == way.survivors(VISUAL_TOKENS * images, images)
        text = before.origin[row][before.valid[row] & (before.kind[row] == TEXT)]
        assert origin[~visual].tolist() == text.tolist()
        assert torch.equal(after.position[row][after.valid[row]], before.position[row][origin])


@pytest.mark.parametrize("name", FLOOR)
def test_a_row_alone_gives_what_it_gives_in_a_padded_batch(model, name):
    way = method(name)(count=3, seed=1)
    together = last_logits(model, PROMPTS, way)

    for place, prompt in enumerate(PROMPTS):
        alone = last_logits(model, [prompt], way, rows=[ROWS[place]])
        assert (alone[0] - together[place]).abs().max() < 1e-4


@pytest.mark.parametrize("name", FLOOR)
def test_generating_with_the_cache_equals_recomputing(model, name):
    length = {"max_new_tokens": 5, "min_new_tokens": 5, "suppress_tokens": [4]}  # no <image> again
    with torch.no_grad(), method(name)(count=3, seed=1).acting(model, ROWS):
        cached, recomputed = (
            model.generate(**inputs_of(PROMPTS), **length, use_cache=use) for use in (True, False)
        )

    assert torch.equal(cached, recomputed)


@pytest.mark.parametrize("name", SELECTORS)
def test_dropping_equals_masking_in_the_native_model(model, native, name):
    inputs, seen = inputs_of(PROMPTS), []
    with torch.no_grad(), method(name)(count=3, seed=1).acting(model, ROWS):
        reduce = model.victor.reduce

        def spy(hidden, tokens):
            seen.append((tokens, reduce(hidden, tokens)))
            return seen[-1][1]

        model.victor.reduce = spy
        ours = model(**inputs).logits
    before, (_, after) = seen[0]
    gone = before.kind == VISUAL
    for row in range(len(PROMPTS)):
        gone[row, after.origin[row][after.valid[row]]] = False

    masked = masked_logits(native, inputs, gone)
    stays = inputs["attention_mask"].bool() & ~gone
    assert (ours - masked)[stays].abs().max() < 1e-4
    assert (ours - native(**inputs).logits)[stays].abs().max() > 1e-2  # it does matter


def masked_logits(native, inputs, gone):
    """Native logits where layers from K on cannot look at the columns that are gone [b, t]."""

    def hide(_, args, kwargs):
        mask = kwargs["attention_mask"]
        kwargs["attention_mask"] = mask.masked_fill(
            gone[:, None, None], torch.finfo(mask.dtype).min
        )
        return args, kwargs

    layers = native.model.language_model.layers[K:]
    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        logits = native(**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("name", FLOOR)
def test_two_runs_agree_and_afterwards_the_model_is_victor_again(model, name):
    victor = last_logits(model, PROMPTS)
    way = method(name)(count=3, seed=1)
    first, second = last_logits(model, PROMPTS, way), last_logits(model, PROMPTS, way)

    assert torch.equal(first, second)
    assert not torch.allclose(first[1:], victor[1:])
    assert torch.equal(last_logits(model, PROMPTS), victor)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_source(name):
    assert "Source: " in method(name).__doc__


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(VictorError, match=r"'fast'\n  fix: use one of: last, no-image"):
        method("fast")
