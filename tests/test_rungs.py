"""What each rung trains, and at which rate.

Faults planted and caught: offsets that are drawn again, that learn at the rate of everything else,
or that another rung trains; a projector without the marks of rows' ends; a tower that is trained.
"""

import pytest
import torch
from torch import nn

from tests.families import FAMILIES, TIMM, tiny_family
from tests.victor_models import victor_llava
from victorctl.errors import VictorError
from victorctl.rungs import choose_parameters, make_optimizer, projector
from victorctl.sections import TrainSection


def test_deep_gives_the_registers_offsets_that_are_zero_and_trains_nothing_else():
    model = victor_llava(drop_layer=3)

    chosen = choose_parameters(model, TrainSection(rung="deep"))

    offsets = ["victor.offsets.1.weight", "victor.offsets.2.weight"]
    assert list(chosen) == ["victor.registers.weight", *offsets]
    assert not any(chosen[name].any() for name in offsets)
    assert model.config.victor["deep"] is True


def test_deep_goes_on_with_the_offsets_that_there_are_and_other_rungs_leave_them_alone():
    model = victor_llava(drop_layer=3, deep=True)
    before = model.victor.offsets["2"].weight.clone()

    assert len(choose_parameters(model, TrainSection(rung="deep"))) == 3
    assert model.victor.offsets["2"].weight.equal(before)
    for rung in ("registers", "register-lora"):
        chosen = choose_parameters(model, TrainSection(rung=rung))
        assert not any("offsets" in name for name in chosen), rung
    assert model.config.victor["deep"] is True


def test_deep_needs_a_layer_between_the_first_and_the_drop():
    sentence = r"deep adds .* drop_layer is 1\n  fix: use --train registers, or .*--drop-layer 2"
    with pytest.raises(VictorError, match=sentence):
        choose_parameters(victor_llava(drop_layer=1), TrainSection(rung="deep"))


def test_registers_and_offsets_learn_at_one_rate_and_all_else_at_another():
    settings = TrainSection(rung="register-lora", learning_rate=1, register_learning_rate=2)
    model = victor_llava(deep=True)
    parameters = choose_parameters(model, settings)
    parameters["victor.offsets.1.weight"] = model.victor.offsets["1"].weight

    groups = make_optimizer(parameters, settings).param_groups

    rates = {id(value): group["peak"] for group in groups for value in group["params"]}
    assert {name: rates[id(value)] for name, value in parameters.items()} == {
        name: 1 if "adapters" in name else 2 for name in parameters
    }


def settings(rung, **more):
    return TrainSection(rung=rung, rank=3, distill=0, **more)


@pytest.mark.parametrize(
    ("rung", "trained"),
    [
        ("registers+projector", {"multi_modal_projector"}),
        ("lora-early", {"lora 0", "lora 1"}),
        ("lora", {f"lora {number}" for number in range(6)}),
        ("lora-early+projector", {"lora 0", "lora 1", "multi_modal_projector"}),
        ("full", {"language_model", "lm_head"}),
        ("full+projector", {"language_model", "lm_head", "multi_modal_projector"}),
    ],
)
def test_a_rung_trains_registers_and_what_its_name_says(rung, trained):
    model = victor_llava(drop_layer=2)
    chosen = choose_parameters(model, settings(rung))

    kinds = set()
    for name in chosen:
        parts = name.split(".")
        kinds.add(f"lora {parts[3]}" if "lora_" in name else parts[parts[0] == "model"])
    assert kinds == {"victor"} | trained
    assert [name for name in chosen if name.startswith("victor")] == ["victor.registers.weight"]
    if "full" in rung:
        text = {*model.get_decoder().parameters(), *model.lm_head.parameters()}
        assert text <= {*chosen.values(), *model.victor.parameters()}
    assert all(value.dtype == torch.float32 for value in chosen.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in TIMM])
def test_the_projector_is_what_lies_between_tower_and_language_model(name):
    native = tiny_family(name)
    own = {key for key, _ in native.named_parameters()}
    between = {key for key in own if not any(part in key for part in ("tower", "vision_model"))}
    between = {key for key in between if "language_model" not in key and "text_model" not in key}
    between -= {"lm_head.weight"}
    native.victor = nn.Module()

    found = projector(native)

    assert set(found) == between
    assert found, name


def test_the_bases_own_weights_have_a_rate_of_their_own():
    wanted = settings(
        "lora+projector", learning_rate=1, register_learning_rate=2, base_learning_rate=3
    )
    parameters = choose_parameters(victor_llava(), wanted)

    groups = make_optimizer(parameters, wanted).param_groups

    rates = {id(value): group["peak"] for group in groups for value in group["params"]}
    for name, value in parameters.items():
        rate = 2 if "registers" in name else 3 if "projector" in name else 1
        assert rates[id(value)] == rate, name


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rung": "full", "dora": True}, "dora and rslora are for the rungs lora-early and lora"),
        ({"rung": "lora", "layers": "early"}, "the rung lora-early updates early layers"),
        ({"rung": "full", "hidden": 1}, "full changes the model that hidden states .* hidden to 0"),
        (
            {"rung": "registers+projector", "teacher_cache": False},
            r"registers\+projector changes .* set teacher_cache to true, or distill to 0",
        ),
    ],
)
def test_options_without_an_effect_and_teachers_that_are_gone_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainSection(**wrong)


def test_dora_is_refused_where_a_row_of_a_weight_is_zero():
    model = victor_llava()
    model.get_decoder().layers[1].mlp.up_proj.weight.data[3] = 0

    with pytest.raises(VictorError, match=r"layers\.1\.mlp\.up_proj: has rows of zeros.*\n.*dora"):
        choose_parameters(model, settings("lora", dora=True))
