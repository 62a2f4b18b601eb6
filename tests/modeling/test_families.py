"""Every family that is said to be tested obeys every law."""

import pytest
from transformers.utils import is_timm_available

from tests import families
from tests.modeling import laws
from victorctl import modeling_victor
from victorctl.families import FAMILIES

AT_ONCE = ("llava_onevision", "idefics3")  # several sizes, videos; tiles with text between
WITHOUT_TIMM = pytest.mark.skipif(not is_timm_available(), reason="its tower needs timm")
NAMES = [
    name
    if name in AT_ONCE
    else pytest.param(
        name, marks=[pytest.mark.slow, *([WITHOUT_TIMM] if name in families.TIMM else [])]
    )
    for name in families.FAMILIES
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make and load a family's case; the last is kept."""
    return laws.keep_last(lambda name: families.make(tmp_path_factory.mktemp(name), name))


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_it_holds_that(made, name, law):
    law(made(name))


def test_the_families_that_are_listed_are_those_that_are_tested_and_those_of_the_shipped_file():
    listed = {family.ours: family.native for family in FAMILIES}

    assert [family.model_type for family in FAMILIES] == list(families.FAMILIES)
    assert listed == {name: one.native for name, one in modeling_victor.FAMILIES.items()}
