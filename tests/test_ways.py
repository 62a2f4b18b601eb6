"""Methods are brought to budgets by their own setting, and say where they cannot be.

Faults planted and caught: registers left out of what Victor spends, a method that stays at its
default, settings of one method given to all, near taken for reached.
"""

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from tests.victor_models import victor_llava
from victorctl import methods
from victorctl.errors import VictorError
from victorctl.methods.base import Spec
from victorctl.recipe import load_recipe
from victorctl.sections import CompareSection
from victorctl.ways import Aim, Models, chosen, describe

N, LAYERS, K, M = 16, 6, 2, 3


@pytest.fixture(scope="module")
def model():
    return victor_llava(registers=M, drop_layer=K)


def aims(  # noqa: PLR0913
    model, names, budgets, settings=None, *, elastic=False, tiles=1, pictures=1.0
):
    model.config.victor = {**model.config.victor, "elastic": elastic}
    picture, tile = Spec(N, LAYERS), Spec(N // tiles, LAYERS)
    models = Models(model, model, picture, tile, tiles, pictures, seed=0)
    return list(models.aims(names, budgets, settings or {}))


def names_of(methods="all", config=None, settings=None):
    section = CompareSection(methods=methods, settings=settings or {})
    return chosen(section, config or LLAVA)


LLAVA = SimpleNamespace(
    model_type="llava", vision_config=SimpleNamespace(model_type="clip_vision_model")
)


def test_auto_is_what_the_model_spends_registers_included(model):
    (aim,) = aims(model, ["victor"], ["auto"])
    assert aim.budget == pytest.approx((K * (N + M) + (LAYERS - K) * M) / LAYERS)
    assert aim.reached(aim.way.mean)
    assert aim.way.settings == {"registers": M, "layer": K}


def test_a_model_has_its_own_number_of_registers_unless_it_was_trained_for_any(model):
    budget = (K * (N + 1) + (LAYERS - K) * 1) / LAYERS  # of one register
    (own,) = aims(model, ["victor"], [budget])
    assert own.way.settings["registers"] == M
    assert not own.reached(own.way.mean)
    (elastic,) = aims(model, ["victor"], [budget], elastic=True)
    assert elastic.way.settings["registers"] == 1
    assert elastic.reached(elastic.way.mean)


@pytest.mark.parametrize(
    "name", ["random", "pool", "grid", "last", "vtc-cls", "fopru", "visionzip"]
)
def test_methods_before_the_language_model_keep_as_many_as_the_budget(model, name):
    (aim,) = aims(model, [name], [5])
    assert aim.way.own.count == 5
    assert aim.way.mean == 5


def test_a_method_between_layers_keeps_fewer_as_its_early_layers_see_everything(model):
    (aim,) = aims(model, ["fastv"], [8], {"fastv": {"layer": 2}})
    # (2 * 16 + 4 * count) / 6 = 8
    assert aim.way.own.count == 4
    (too_low,) = aims(model, ["fastv"], [5], {"fastv": {"layer": 2}})
    assert too_low.way.own.count == 1
    assert not too_low.reached(too_low.way.mean)


def test_settings_are_those_of_one_method_alone(model):
    first, second = aims(model, ["random", "pool"], [8], {"pool": {"layer": 3}})
    assert (first.way.own.layer, second.way.own.layer) == (0, 3)
    assert second.way.name == "pool:count=1,layer=3"  # (3 * 16 + 3 * 1) / 6 = 8.5 is nearest


def test_what_comes_out_the_same_for_two_budgets_is_asked_once(model):
    first, second = aims(model, ["prumerge"], [3, 9])
    assert first.way is second.way
    assert (first.budget, second.budget) == (3, 9)


@pytest.mark.parametrize(("mean", "reached"), [(100.0, True), (102.0, True), (97.9, False)])
def test_a_budget_is_reached_within_two_per_cent(model, mean, reached):
    (aim,) = aims(model, ["random"], [5])
    assert Aim(100, aim.way).reached(mean) is reached
    assert Aim(5, aim.way).reached(5.5)  # or half a token


def test_a_budget_is_of_a_question_however_many_pictures_it_has(model):
    # Two pictures in every second question, none in the others: one on average.
    own, random = aims(model, ["victor", "random"], ["auto"], pictures=3.0)
    assert own.budget == pytest.approx(3 * (K * (N + M) + (LAYERS - K) * M) / LAYERS)
    assert own.reached(own.way.mean)
    assert random.way.own.count == round(own.budget / 3)
    assert random.way.mean == 3 * random.way.own.count


def test_methods_before_the_projector_decide_tile_by_tile(model):
    tower, inside = aims(model, ["vtc-cls", "random"], [8], tiles=4)
    assert (tower.way.own.count, inside.way.own.count) == (2, 8)
    assert tower.way.mean == inside.way.mean == 8


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(VictorError, match=r"compare.settings.fastv.layers: .*\n  fix: use its "):
        names_of("fastv", settings={"fastv": {"layers": 2}})
    with pytest.raises(VictorError, match=r"sparsevlm\.stages: .*layers must ascend"):
        names_of("sparsevlm", settings={"sparsevlm": {"stages": [9, 6, 15]}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fast": {"layer": 3}}, "compare.settings.fast: fast is not among --methods"),
        ({"victor": {"registers": 1}}, "compare.settings.victor: victor has none"),
        ({"random": {"count": 2}}, "compare.settings.random.count: it is what budgets are solved"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(settings, said):
    with pytest.raises(VictorError, match=said):
        names_of("victor,random", settings=settings)


def test_all_are_all_but_those_that_need_something_of_the_user():
    assert names_of() == ["victor", *(name for name in methods.METHODS if name != "ogs")]
    assert names_of("pool,victor,pool") == ["pool", "victor"]
    with pytest.raises(VictorError, match="--methods names none"):
        names_of(",")
    with pytest.raises(VictorError, match=r"no method called 'fast'\n  fix: did you mean fastv\?"):
        names_of("fast")
    with pytest.raises(VictorError, match=r"no boxes are given\n  fix: give a file of them: --set"):
        names_of("ogs")


def test_where_a_projector_mixes_patches_methods_before_it_are_left_out_or_refused():
    other = SimpleNamespace(model_type="internvl", vision_config=LLAVA.vision_config)
    assert not {"vtc-cls", "downsample"} & set(names_of("all", other))
    assert {"victor", "fastv", "pool"} < set(names_of("all", other))
    assert names_of(CompareSection().methods, other)  # what is usual can act anywhere
    with pytest.raises(VictorError, match=r"visionzip acts on .* the projector of internvl makes"):
        names_of("visionzip", other)


def test_the_list_says_where_a_method_acts_and_what_it_follows():
    rows = {row["method"]: row for row in describe()["methods"]}
    assert list(rows) == ["victor", *methods.METHODS]
    assert rows["fastv"]["settings"] == ["positions=original", "layer=2", "count=288"]
    assert rows["prumerge"]["knob"] == "the picture"
    assert (rows["vtc-cls"]["stage"], rows["sparsevlm"]["knob"]) == ("tower", "budget")
    assert all(row["source"] for row in rows.values())
    assert rows["fopru"]["unverified"]


def test_another_package_offers_methods_by_entry_points(monkeypatch):
    class Point:
        name = "mine"

        @staticmethod
        def load():
            return methods.method("pool")

    monkeypatch.setattr(
        methods, "entry_points", lambda group: [Point] if "victorctl" in group else []
    )
    assert methods.names()[-1] == "mine"
    assert methods.method("mine") is methods.method("pool")
    assert [row["method"] for row in describe()["methods"]][-1] == "mine"


def test_what_another_package_offers_and_does_not_have_is_named(monkeypatch):
    point = EntryPoint("mine", "victorctl.methods.floor:Missing", "victorctl.methods")
    monkeypatch.setattr(methods, "entry_points", lambda group: [point])
    with pytest.raises(VictorError, match=r"'mine', offered as .*Missing.*\n  fix: mend the entry"):
        methods.method("mine")


def test_a_budget_is_a_number_above_0_or_auto_and_counts_once(model):
    for wrong in ("0", "-5", "abc", "20,nan"):
        with pytest.raises(VictorError, match="is neither a number above 0 nor auto"):
            load_recipe(flags={"compare.budgets": wrong})
    found = load_recipe(flags={"compare.budgets": "20,auto,1e2"}).compare.budgets
    assert found == (20, "auto", 100)
    assert len(aims(model, ["grid"], [5, 5])) == 1
