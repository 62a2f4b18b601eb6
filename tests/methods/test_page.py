"""The page on adding a method is all that is needed: what it shows runs, and obeys the laws."""

import re
from pathlib import Path

import pytest

from tests.methods.acting import PROMPTS, ROWS, case, run
from tests.modeling.laws import inputs
from tests.tiny import VISUAL_TOKENS
from victorctl.methods.base import Spec
from victorctl.methods.engine import Engine

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture(scope="module")
def longest(tmp_path_factory):
    shown = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    space = {"__name__": "mine.longest"}
    exec(compile(shown, str(PAGE), "exec"), space)
    return space["Longest"]


@pytest.mark.parametrize("count", [1, 5, VISUAL_TOKENS])
def test_the_example_keeps_what_it_plans(longest, count):
    made, way = case("llava"), longest(count=count)
    engine = Engine(way, made.victor)
    run(made, engine, inputs(made, *PROMPTS), ROWS)
    layers = len(made.victor.get_decoder().layers)
    own = way.plan(Spec(VISUAL_TOKENS, layers))
    expected = [[prompt.count("#") * entering for entering in own] for prompt in PROMPTS]
    assert engine.entered == expected


def test_its_budget_is_solved_for_like_any_others(longest):
    assert longest().fit(7, Spec(VISUAL_TOKENS, 6)).count == 7


def test_all_parts_that_the_page_names_are_there(longest):
    names = set(re.findall(r"^\| `(\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    known = set(dir(longest)) | set(longest.model_fields)
    assert names - known == set(), names - known
