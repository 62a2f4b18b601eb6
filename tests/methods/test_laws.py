"""What holds for every method, in every family that it can act in.

Faults planted and caught: padding forgotten where places are marked; pictures of other prompts
counted; a draw by the place in the batch; attention of another row; what a method notes shared by
rows; merged states in the first places; one layer late. Compact positions ignored, counted from
other layers, or not counted on; the next position forgotten; late layers behind the early mask;
padding charged. Registers, or hooks, that stay off, hooks that stay on, packing that stays ours.
In the tower: tiles in another order, features put in as they were, looking ahead through hooks,
videos, mixing projectors and early layers let in, boxes of another row. Of tiles: rows' ends that
always go on, or never, or with the picture as a whole; merged tokens cut off with the padding.
"""

import pytest
import torch
import yaml
from transformers.utils import is_timm_available

from tests.families import FAMILIES, TIMM
from tests.methods.acting import (
    INSIDE,
    LAYERS,
    ROWS,
    TOWER,
    VIDEOS,
    WAYS,
    Failing,
    Noting,
    Spying,
    case,
    run,
)
from tests.modeling.laws import assert_close, each, generate, inputs
from victorctl.errors import VictorError
from victorctl.methods import METHODS, method
from victorctl.methods.base import Spec
from victorctl.methods.engine import Engine
from victorctl.methods.watching import Watch
from victorctl.modeling_victor import CACHE, MODALITIES, VISUAL

SEEN = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision")
TILED = ("llava_next", "llava_next_video", "llava_onevision")
EVERYWHERE = "fastv"  # what acts in every family in the default suite
WITHOUT_TIMM = pytest.mark.skipif(not is_timm_available(), reason="its tower needs timm")


def acts(family, name):
    """Tell whether a way can act in a family."""
    whole = not method(WAYS[name].name).extras or family not in TILED  # else boxes are for tiles
    layers = family != "vipllava" or WAYS[name].name != "elip"
    return name in INSIDE or (family in SEEN and whole and layers)


def matrix():
    for family in FAMILIES:
        for name in WAYS:
            if acts(family, name):
                marks = [WITHOUT_TIMM] if family in TIMM else []
                if family != "llava" and name != EVERYWHERE:
                    marks.append(pytest.mark.slow)
                yield pytest.param(family, name, marks=marks, id=f"{family}-{name}")


# ---- The laws ------------------------------------------------------------------------------------


def full_budget_is_the_base(made, way):
    """Where everything goes on, the logits are the native model's."""
    if way.full is None:
        return
    batch = inputs(made, *way.prompts)
    ours = run(made, Engine(way.make(**way.full), made.victor), batch, ROWS[: len(way.prompts)])
    with torch.no_grad():
        base = made.native(**batch).logits
    valid = batch["attention_mask"].bool()
    assert_close(ours.logits[valid], base[valid])


def survivors_are_in_order_and_text_is_untouched(made, way):
    """Each once, ascending, at least one, at their positions; and no text is lost."""
    batch, engine = inputs(made, *way.prompts), Spying(way.make(), made.victor)
    run(made, engine, batch, ROWS[: len(way.prompts)])
    valid = batch["attention_mask"].bool()
    visual = visual_of(made, batch)
    columns = torch.arange(valid.shape[1])
    for tokens in engine.by_layer():
        for row in range(len(valid)):
            stays = tokens.valid[row]
            origin = tokens.origin[row][stays]
            assert (origin.diff() > 0).all()
            seen = tokens.kind[row][stays] == VISUAL
            assert torch.equal(seen, visual[row][origin])
            text = columns[valid[row] & ~visual[row]]
            assert torch.equal(origin[~seen], text)
            assert seen.any() or engine.method.may_empty or not visual[row].any()
            position = valid[row].cumsum(0)[origin] - 1
            if engine.method.positions == "compact":
                position = torch.arange(len(origin))
            assert torch.equal(tokens.position[row][stays], position)
    if way.exact:  # else pictures may be such that all go on
        assert len(engine.by_layer()[-1].valid[0]) < valid.shape[1]


def charged_is_what_the_cache_holds(made, way):
    """What is counted is what every layer's cache has beside the text, and what was planned."""
    batch, engine = inputs(made, *way.prompts), Engine(way.make(), made.victor)
    output = run(made, engine, batch, ROWS[: len(way.prompts)])
    cache, visual = getattr(output, CACHE), visual_of(made, batch)
    text = (batch["attention_mask"].bool() & ~visual).sum(dim=1)
    edges = engine.edges
    for stage, valid in enumerate(cache.valid):
        for layer in range(edges[stage], edges[stage + 1]):
            assert cache.layers[layer].keys.shape[2] == valid.shape[1]
            held = (valid.sum(dim=1) - text).tolist()
            assert [entered[layer] for entered in engine.entered] == held
    whole = int(visual[0].sum())
    model_type = made.native.config.model_type
    if way.exact and (way in INSIDE.values() or model_type in ("llava", "vipllava")):
        assert tuple(engine.entered[0]) == way.make().plan(Spec(whole, LAYERS))
        assert min(engine.entered[0]) < whole


def alone_is_as_in_a_padded_batch(made, way):
    """A prompt's answer, and what it spends, do not depend on the prompts beside it."""
    engine = Engine(way.make(), made.victor)
    together = run(made, engine, inputs(made, *way.prompts), ROWS[: len(way.prompts)])
    spent = engine.entered
    for row, one in enumerate(each(made, *way.prompts)):
        alone = run(made, engine, one, [ROWS[row]])
        assert_close(alone.logits[0, -1], together.logits[row, -1])
        assert engine.entered[0] == spent[row]


def the_cache_is_as_good_as_computing_again(made, way):
    """Written word by word, every word's logits are those of one call with the same choices."""
    batch, first = inputs(made, *way.prompts), Noting(way.make())
    rows = ROWS[: len(way.prompts)]
    with Engine(first, made.victor).acting(rows):
        written = generate(made, batch)
    long = written.sequences.shape[1] - batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones(len(rows), long, dtype=torch.long)], 1)
    again = {**batch, "input_ids": written.sequences, "attention_mask": mask}
    whole = run(made, Engine(Noting(way.make(), first.notes), made.victor), again, rows).logits
    for step, logits in enumerate(written.logits):
        assert_close(logits, whole[:, step - long - 1])


def dropping_is_masking(made, way):
    """Keeping everything, hidden from the layers that it was dropped before, changes nothing."""
    if (way.merges and way in TOWER.values()) or way.make().positions != "original":
        return
    batch, method = inputs(made, *way.prompts), Noting(way.make())
    engine = Spying(method, made.victor)
    ours = run(made, engine, batch, ROWS[: len(way.prompts)]).logits
    valid = batch["attention_mask"].bool()
    gone = [valid & ~columns_of(tokens, valid) for tokens in engine.by_layer()]
    merged = {}
    if way.merges:  # at one layer, row by row
        (cut,) = engine.cuts
        visual = visual_of(made, batch) & ~gone[cut]
        merged[cut] = visual, torch.cat([kept.states for kept in method.notes])
    masked = masked_logits(made.native, batch, gone, merged)
    stays = valid & ~gone[-1]
    assert_close(ours[stays], masked[stays])
    with torch.no_grad():
        assert not torch.allclose(ours[stays], made.native(**batch).logits[stays], atol=1e-2)


def nothing_is_left_behind(made, way):
    """Two runs are equal, and the model is Victor again afterwards, whatever happened."""
    batch, rows = inputs(made, *way.prompts), ROWS[: len(way.prompts)]
    made.victor.victor.attach(
        made.victor.get_decoder().layers
    )  # whatever the laws before have left
    with torch.no_grad():
        victor = made.victor(**batch).logits
    first, second = (
        run(made, Engine(way.make(), made.victor), batch, rows).logits for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.allclose(first, victor, atol=1e-2)
    with pytest.raises(RuntimeError, match="on the way"):
        run(made, Engine(Failing(way.make()), made.victor), batch, rows)
    with torch.no_grad():
        assert torch.equal(made.victor(**batch).logits, victor)
    assert not Watch.open
    assert not [name for name in vars(made.victor.model) if "features" in name]


LAWS = (
    full_budget_is_the_base,
    survivors_are_in_order_and_text_is_untouched,
    charged_is_what_the_cache_holds,
    alone_is_as_in_a_padded_batch,
    the_cache_is_as_good_as_computing_again,
    dropping_is_masking,
    nothing_is_left_behind,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("family", "name"), [*matrix()])
def test_it_holds_that(family, name, law):
    law(case(family), WAYS[name])


def visual_of(made, batch):
    """Mark placeholders [b, n]."""
    tokens = [getattr(made.native.config, each.token, -1) for each in MODALITIES.values()]
    return torch.isin(batch["input_ids"], torch.tensor(tokens))


def columns_of(tokens, valid):
    """Mark the caller's columns that are left [b, n]."""
    there = torch.zeros(len(valid), valid.shape[1] + 1, dtype=torch.bool)
    origin = torch.where(tokens.valid, tokens.origin, valid.shape[1])
    return there.scatter(1, origin, True)[:, :-1]


def masked_logits(native, batch, gone, merged):
    """Native logits where no layer can look at the columns that are gone from it, each [b, n].

    What is merged stands before a layer at some columns [b, n].
    """

    def hide(layer, columns):
        def hook(_layer, args, kwargs):
            if layer in merged:
                places, states = merged[layer]
                args = (args[0].masked_scatter(places[..., None], states), *args[1:])
            mask = kwargs["attention_mask"]
            least = torch.finfo(mask.dtype).min
            return args, kwargs | {
                "attention_mask": mask.masked_fill(columns[:, None, None], least)
            }

        return hook

    layers = native.get_decoder().layers
    hooks = [
        layer.register_forward_pre_hook(hide(number, columns), with_kwargs=True)
        for number, (layer, columns) in enumerate(zip(layers, gone, strict=True))
    ]
    try:
        with torch.no_grad():
            return native(**batch).logits
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in WAYS if WAYS[name].name != "sparsevlm"])
def test_a_prompt_in_two_calls_is_as_in_one(name):
    made, first = case("llava"), Noting(WAYS[name].make())
    whole = inputs(made, "ab#cd", "a#bcd")  # the first call of the first ends with its picture
    mask, part = whole["attention_mask"], dict(whole, input_ids=whole["input_ids"][:, :-2])
    engine = Engine(first, made.victor)
    with engine.acting(ROWS[:2]):
        cache = made.victor(**part | {"attention_mask": mask[:, :-2]}, use_cache=True)[CACHE]
        ids = whole["input_ids"][:, -2:]
        two = made.victor(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits
    again = Engine(Noting(WAYS[name].make(), first.notes), made.victor)
    assert_close(two, run(made, again, whole, ROWS[:2]).logits[:, -2:])


@pytest.mark.parametrize("name", TOWER)
def test_the_language_model_reads_what_was_kept_of_the_features(name):
    made, way, read = case("llava"), Noting(TOWER[name].make()), []
    first = made.victor.get_decoder().layers[0]
    handle = first.register_forward_pre_hook(lambda _layer, args: read.append(args[0]))
    engine = Spying(way, made.victor)
    run(made, engine, inputs(made, *TOWER[name].prompts), ROWS[: len(TOWER[name].prompts)])
    handle.remove()
    tokens = engine.by_layer()[0]
    expected = [
        features[kept.index] if kept.states is None else kept.states
        for kept, features in zip(way.notes, way.shown, strict=True)
    ]
    with torch.no_grad():
        states = made.native.model.multi_modal_projector(torch.cat(expected))
    assert_close(read[0][(tokens.kind == VISUAL) & tokens.valid], states)


# ---- Tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TOWER if acts("llava_next", name)])
@pytest.mark.parametrize("family", ["llava_next"])
def test_a_rows_end_goes_on_if_a_token_of_the_row_does(family, name):
    made, way, ends = case(family), TOWER[name], 0
    for number in range(4):  # pictures of four sizes, some filled up to their tiles
        batch = inputs(made, "a#b", first=number)
        engine = Spying(way.make(), made.victor)
        run(made, engine, batch, [0])
        left = columns_of(engine.by_layer()[0], batch["attention_mask"].bool())[0, 1:-1]
        sees = {key: batch[key] for key in ("pixel_values", "image_sizes")}
        with torch.no_grad():
            features = made.native.model.get_image_features(**sees).pooler_output[0]
        is_end = (features == made.native.model.image_newline).all(dim=-1)
        tiles = int((batch["pixel_values"][0].flatten(1).std(dim=1) > 0).sum())
        start = 16 if tiles > 1 else 0  # the picture as a whole comes first, and has no rows
        assert left[:start].any() or start == 0
        if way.merges and way.exact:  # its tokens are nowhere in the picture: none is cut off
            (each,) = set(way.make().plan(Spec(16, 1)))
            assert (left & ~is_end).sum() == tiles * each
        for end in is_end.nonzero().squeeze(1).tolist():
            assert left[end] == left[start:end].any()
            start, ends = end + 1, ends + 1
    assert ends == ENDS


ENDS = 4 + 4 + 8 + 8  # rows of pictures 32 x 32, 30 x 60, 64 x 40 and 50 x 50, in patches of 8


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in SEEN])
def test_what_acts_on_patches_is_refused_where_the_projector_mixes_them(family):
    if family in TIMM and not is_timm_available():
        pytest.skip("its tower needs timm")
    with pytest.raises(VictorError, match=f"VTCCLS acts .* the projector of {family} makes"):
        Engine(WAYS["vtc-cls"].make(), case(family).victor)


def test_what_acts_on_patches_is_refused_where_a_class_token_is_handed_on(monkeypatch):
    made = case("llava")
    monkeypatch.setattr(made.victor.config, "vision_feature_select_strategy", "full")
    with pytest.raises(VictorError, match=r"VTCCLS acts .* this one hands its class token on, too"):
        Engine(WAYS["vtc-cls"].make(), made.victor)


def test_what_acts_on_patches_is_refused_where_the_tower_is_not_known(monkeypatch):
    made = case("llava")
    monkeypatch.setattr(made.victor.config.vision_config, "model_type", "pixtral")
    with pytest.raises(VictorError, match=r"VTCCLS acts .* this one is a pixtral"):
        Engine(WAYS["vtc-cls"].make(), made.victor)


def test_what_trims_a_tower_is_refused_where_layers_before_are_read():
    with pytest.raises(VictorError, match=r"ELIP acts .* vipllava reads some layers before"):
        Engine(WAYS["elip"].make(), case("vipllava").victor)


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision"])
def test_what_acts_on_patches_refuses_videos(family):
    made = case(family)
    engine = Engine(WAYS["vtc-cls"].make(), made.victor)
    with pytest.raises(VictorError, match="videos are not tried\n  fix: choose a method that acts"):
        run(made, engine, inputs(made, *VIDEOS), ROWS[:3])


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].video])
def test_what_acts_between_the_layers_takes_videos(family):
    if family in TIMM and not is_timm_available():
        pytest.skip("its tower needs timm")
    made, engine = case(family), Engine(WAYS["fastv"].make(), case(family).victor)
    batch = inputs(made, *VIDEOS)
    run(made, engine, batch, ROWS[:3])
    visual = visual_of(made, batch).sum(dim=1).tolist()
    assert [entered[0] for entered in engine.entered] == visual
    assert all(
        0 < late[-1] < early for late, early in zip(engine.entered[:2], visual, strict=False)
    )


@pytest.mark.parametrize("prompts", [("a#b#", "#"), ("##", "ab")])
def test_boxes_of_a_row_are_for_one_picture(prompts):
    made, engine = case("llava"), Engine(WAYS["ogs"].make(), case("llava").victor)
    with pytest.raises(VictorError, match="what is given for a row is for one picture"):
        run(made, engine, inputs(made, *prompts), ROWS[:2])


# ---- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_settings_survive_yaml(name):
    way = WAYS[name].make()
    written = yaml.safe_dump(way.model_dump(mode="json"))
    assert type(way).model_validate(yaml.safe_load(written)) == way


def test_every_method_is_in_the_matrix():
    assert {way.name for way in WAYS.values()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_source(name):
    assert "Source: " in method(name).__doc__
    assert method(name).source


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(VictorError, match="FastV acts before layer 6, counted from 0, and the"):
        Engine(method("fastv")(layer=6), case("llava").victor)
