import pytest
import transformers
from transformers import CONFIG_MAPPING

from victorctl import modeling_victor
from victorctl.errors import VictorError
from victorctl.families import BACKBONES, FAMILIES, REFUSED, describe, family_of

PARTS = {"text_config": {}, "vision_config": {}}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_each_family_names_classes_and_keys_that_exist(family):
    native = getattr(transformers, family.native)
    ours = getattr(modeling_victor, family.ours)
    assert native.config_class.model_type == family.model_type
    assert ours.native is native
    assert issubclass(ours, native)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_converted_is_refused_with_its_reason(name):
    assert name in CONFIG_MAPPING
    with pytest.raises(VictorError, match=f"here: a model of type {name} .*: {REFUSED[name]}"):
        family_of({"model_type": name, **PARTS}, "here")


def test_every_text_model_that_was_tried_is_known_to_transformers_and_refused_for_a_reason():
    names = [known.model_type for known in BACKBONES]
    assert len(names) == len(set(names)) == 32
    for known in BACKBONES:
        assert known.model_type in CONFIG_MAPPING
        assert known.remarks or not known.refused


def test_a_family_is_found_by_its_model_type():
    assert family_of({"model_type": "llava", **PARTS}, "here").ours == "VictorLlava"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"model_type": "bert", **PARTS},
            "here: a model of type bert is of no family that can be converted\n  fix: use a",
        ),
        (
            {"model_type": "llama"},
            "here: a model of type llama is of no family that can be converted\n  fix: use a",
        ),
        (
            {},
            "here: config.json names no model_type\n  fix: use a model of a family that",
        ),
        ({"model_type": ["llava"], **PARTS}, "here: config.json names no model_type"),
        ({"model_type": "llava"}, "here: config.json lacks text_config or vision_config"),
        (
            {"model_type": "llava", "mm_vision_tower": "openai/clip"},  # both names were in use
            "here: this is LLaVA's original layout, .*\n  fix: victorctl convert here --out FOLDER",
        ),
        ({"model_type": "llava_llama", "mm_vision_tower": "openai/clip"}, "original layout"),
    ],
)
def test_says_why_a_model_is_of_no_family(config, sentence):
    with pytest.raises(VictorError, match=sentence):
        family_of(config, "here")


def test_the_tables_have_a_row_for_each_family_and_each_text_model():
    tables = describe()
    assert [row["family"] for row in tables["families"]] == [
        family.model_type for family in FAMILIES
    ]
    assert {tuple(row) for row in tables["families"]} == {("family", "class", "becomes", "remarks")}
    assert {row["refused"] for row in tables["refused"]} == REFUSED.keys()
    verdicts = {row["text_model"]: row["verdict"] for row in tables["text_models"]}
    assert len(verdicts) == len(BACKBONES)
    assert (verdicts["llama"], verdicts["granite"]) == ("tested", "refused")
