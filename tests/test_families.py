import pytest
import transformers
from transformers import CONFIG_MAPPING

from victorctl import modeling_victor
from victorctl.errors import VictorError
from victorctl.families import FAMILIES, SLICEABLE, describe, family_of

PARTS = {"text_config": {}, "vision_config": {}}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_each_family_names_classes_and_keys_that_exist(family):
    native = getattr(transformers, family.native)
    ours = getattr(modeling_victor, family.ours)
    assert native.config_class.model_type == family.model_type
    assert ours.native is native
    assert issubclass(ours, native)
    assert hasattr(native.config_class(), family.placeholder)


def test_the_text_models_named_are_known_to_transformers():
    assert len(SLICEABLE) == 15
    for name in SLICEABLE:
        assert name in CONFIG_MAPPING


def test_a_family_is_found_by_its_model_type():
    assert family_of({"model_type": "llava", **PARTS}, "here").ours == "VictorLlava"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "bert", **PARTS}, "here: a model of type bert is no LLaVA\n  fix: use a"),
        ({"model_type": "llama"}, "here: a model of type llama is no LLaVA\n  fix: use a"),
        ({}, "here: config.json names no model_type\n  fix: use a model of type llava; see"),
        ({"model_type": "llava"}, "here: config.json lacks text_config or vision_config"),
        (
            {"model_type": "llava", "mm_vision_tower": "openai/clip"},  # both names were in use
            "here: this is LLaVA's original layout, .*\n  fix: use the same model from .*llava-hf",
        ),
        ({"model_type": "llava_llama", "mm_vision_tower": "openai/clip"}, "original layout"),
    ],
)
def test_says_why_a_model_is_of_no_family(config, sentence):
    with pytest.raises(VictorError, match=sentence):
        family_of(config, "here")


def test_the_table_has_a_row_for_each_family_of_the_same_columns():
    rows = describe()
    assert [row["family"] for row in rows] == [family.model_type for family in FAMILIES]
    assert {tuple(row) for row in rows} == {
        ("family", "class", "becomes", "placeholder", "remarks")
    }
