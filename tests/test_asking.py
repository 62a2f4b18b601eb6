"""Answers are the same however the work was cut, interrupted, shared or known before."""

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_data, tiny_llava, tiny_rows
from victorctl import base_answers, checkpoint
from victorctl.answering import FIRST_TOKENS, NEVER, Beginning, Greedy
from victorctl.base_answers import BaseAnswer, BaseAnswers, First
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.files import append_lines, read_lines
from victorctl.notebook import Entry, Notebook
from victorctl.questions import Size, prepare, questions
from victorctl.recipe import Run, load_recipe

ROOT = Path(__file__).parent.parent
QUIET = Run(device="cpu", quiet=True)


def settings(data, *more):
    made = ["victor.registers=3", "victor.drop_layer=2", "convert.verify=none"]
    asked = [f"eval.data={data}", "eval.max_new_tokens=3", "eval.repeats=0", "eval.batch_size=2"]
    return load_recipe(None, settings=[*made, *asked, *more])


@pytest.fixture(autouse=True)
def known(tmp_path, monkeypatch):
    """Keep what bases answer in a folder of the test's own."""
    monkeypatch.setattr(base_answers, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "victorctl" / "base"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_llava(folder / "source")
    data = tiny_data(folder / "data", count=7)
    convert(
        str(folder / "source"),
        recipe=settings(data),
        run=dataclasses.replace(QUIET, out=folder / "model"),
    )
    return folder


@pytest.fixture
def run(place, tmp_path):
    """Evaluate, and return the report and the predictions."""

    def measure(*more, name="eval", **how):
        where = dataclasses.replace(QUIET, out=tmp_path / name, **how)
        data = place / "data" / "data.json"
        result = evaluate(place / "model", recipe=settings(data, *more), run=where)
        return result, (tmp_path / name / "predictions.jsonl").read_text()

    return measure


def lasting(result):
    """Leave out of a report what no two runs share, or what tells how it came about."""
    told = {key: value for key, value in result.items() if key not in ("seconds", "report")}
    alike = dict(told["settings"])
    del alike["command"], alike["base_answers_known"]
    return told | {"settings": alike}


@contextmanager
def stopped_at(number):
    """End an evaluation by Ctrl-C when that batch is half written."""
    with pytest.MonkeyPatch.context() as patch:
        real, batches = Notebook.add, []

        def add(self, task, entries):
            real(self, task, entries)
            batches.append(entries)
            if len(batches) == number:
                file = self.folder / f"{task}.{self.process}.jsonl"
                file.write_bytes(file.read_bytes()[:-30])
                raise KeyboardInterrupt

        patch.setattr(Notebook, "add", add)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture
def generations(monkeypatch):
    """Note whenever somebody answers a batch."""
    real, noted = Greedy.generate, []

    def generate(self, who, *args, **how):
        noted.append(who)
        return real(self, who, *args, **how)

    monkeypatch.setattr(Greedy, "generate", generate)
    return noted


# ---- Interrupted, and shared ---------------------------------------------------------------------


def test_a_resumed_evaluation_gives_what_an_uninterrupted_one_gives(run, tmp_path, generations):
    how = ("eval.base_cache=false", "eval.baselines=true")
    whole = run(*how, name="whole")
    assert len(generations) == 4 * 7  # batches of two, seven contestants
    with stopped_at(2):
        run(*how)
    left = sorted(path.name for path in (tmp_path / "eval.answers").iterdir())
    generations.clear()

    again = run(*how, resume=True)

    assert left == ["data.0.jsonl", "run.json"]
    assert len(generations) == 3 * 7  # the second batch was lost in the middle of a line
    assert lasting(again[0]) == lasting(whole[0])
    assert again[1] == whole[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "whole"]


def test_an_evaluation_may_go_on_with_another_batch_size(run, generations):
    whole = run("eval.base_cache=false", name="whole")
    with stopped_at(3):
        run("eval.base_cache=false")
    generations.clear()

    again = run("eval.base_cache=false", "eval.batch_size=7", resume=True)

    assert len(generations) == 2  # one batch of all seven, as three of them are missing
    assert again[1] == whole[1]


def test_ctrl_c_says_how_it_goes_on(run, tmp_path, capsys):
    with stopped_at(1):
        run(quiet=False)

    assert capsys.readouterr().err.endswith(
        "stopped; what was answered is kept: add --resume to go on\n"
    )


def test_without_resume_an_interrupted_evaluation_is_started_again(run, generations, capsys):
    with stopped_at(2):
        run()
    generations.clear()

    run("eval.base_cache=false", quiet=False)

    assert len(generations) == 4 * 2
    assert "starting again: an interrupted evaluation was here" in capsys.readouterr().err


def test_only_the_same_evaluation_goes_on(run, tmp_path):
    with stopped_at(2):
        run()
    before = (tmp_path / "eval.answers" / "data.0.jsonl").read_bytes()

    with pytest.raises(VictorError) as refused:
        run("eval.limit=5", "seed=3", resume=True)

    assert refused.value.problem.endswith(
        "another run lies here: questions was {'data': 7}, is {'data': 5}; seed was 0, is 3; "
        "limit was None, is 5"
    )
    assert refused.value.fix == (
        "give the settings of that run, or leave --resume out, which starts again"
    )
    assert (tmp_path / "eval.answers" / "data.0.jsonl").read_bytes() == before


def test_a_job_that_always_resumes_starts_where_nothing_was_answered_yet(run, capsys):
    run(resume=True, quiet=False)

    assert "nothing was answered yet: starting" in capsys.readouterr().err


def test_a_finished_evaluation_is_not_asked_again_by_mistake(run, generations):
    run()
    generations.clear()

    with pytest.raises(VictorError, match=r"nothing to resume, the evaluation is finished\n  fix:"):
        run(resume=True)
    assert generations == []


def test_another_device_or_attention_does_not_go_on(run):
    with stopped_at(2):
        run()
    with pytest.raises(VictorError, match="another run lies here: attention was sdpa, is eager"):
        run(resume=True, attn="eager")


def test_a_folder_that_is_no_evaluations_is_left_alone(run, tmp_path):
    (tmp_path / "eval.answers").mkdir()
    (tmp_path / "eval.answers" / "mine.txt").write_text("mine")

    with pytest.raises(VictorError, match="answers belong here, and this was not written by"):
        run()
    assert (tmp_path / "eval.answers" / "mine.txt").read_text() == "mine"


LAUNCHERS = {
    "--processes": [],
    "accelerate": [
        *("-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"),
        *("--config_file", str(ROOT / "recipes" / "accelerate" / "ddp.yaml")),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_what_one_gives(run, place, tmp_path, launcher):
    whole = run(name="whole")
    recipe = settings(place / "data" / "data.json")
    (tmp_path / "recipe.yaml").write_text(json.dumps({"eval": recipe.eval.model_dump()}))
    words = ["eval", str(place / "model"), "--recipe", "recipe.yaml", "--out", "eval", "--json"]
    words += ["--device", "cpu", *(["--processes", "2"] if launcher == "--processes" else [])]

    shown = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], "-m", "victorctl", *words], cwd=tmp_path,
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HOME": "home"},
    )  # fmt: skip

    assert shown.returncode == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert result["settings"].pop("processes") == 2
    expected = json.loads(json.dumps(lasting(whole[0])))
    del expected["settings"]["processes"], expected["settings"]["threads"]
    found = lasting(result)
    del found["settings"]["threads"], found["schema"]
    assert found == expected
    assert (tmp_path / "eval" / "predictions.jsonl").read_text() == whole[1]
    assert not (tmp_path / "eval.answers").exists()


# ---- What the base answered before ---------------------------------------------------------------


def test_a_base_is_asked_once_for_all_that_is_compared_with_it(run, known, generations):
    first = run()
    assert first[0]["settings"]["base_answers_known"] == 0
    generations.clear()

    second = run(name="other")

    assert len(generations) == 4
    assert second[0]["settings"]["base_answers_known"] == 7
    assert lasting(second[0]) == lasting(first[0])
    assert second[1] == first[1]
    assert len(list(known.glob("*/*.jsonl"))) == 1


@pytest.mark.parametrize(
    "changed", ["eval.max_new_tokens=4", "eval.base_cache=false", "another number format"]
)
def test_a_base_is_asked_again_where_it_might_answer_otherwise(run, generations, changed):
    run()
    generations.clear()

    again = run(name="b", dtype="bf16") if "format" in changed else run(changed, name="b")

    assert len(generations) == 4 * 2
    assert again[0]["settings"]["base_answers_known"] == 0


def test_questions_are_known_by_what_is_read_and_not_by_their_place(place):
    rows = tiny_rows(3, questions=2, images=(1, 1, 0))
    asked = questions(rows, None)
    processor = checkpoint.load_processor(place / "model")
    keys = prepare(asked, processor, pictures=True).keys()

    alone = [prepare([one], processor, pictures=True).keys()[0] for one in reversed(asked)]

    assert keys == alone[::-1]
    assert len(set(keys)) == 6
    # The same words about another picture are another question.
    other = dataclasses.replace(asked[0], row=dataclasses.replace(rows[0], images=rows[1].images))
    assert prepare([other], processor, pictures=True).keys()[0] not in keys


def test_a_line_that_a_kill_cut_short_costs_nothing_but_itself(tmp_path):
    file = tmp_path / "lines.jsonl"
    append_lines(file, [[1, "a\nb"], [2, "\u2028"]])
    file.write_bytes(file.read_bytes()[:-4])

    append_lines(file, [[3, "c"]])

    assert list(read_lines(file)) == [[1, "a\nb"], [3, "c"]]


def test_an_entry_comes_back_as_it_was(tmp_path):
    notebook = Notebook(tmp_path, process=1)
    entry = Entry(4, Size(16, 3, 1), {"model": "a", "base": "b"}, 0.1 + 0.2, True)
    notebook.add("pope", [entry])

    assert Notebook(tmp_path).read("pope") == {4: entry}
    assert Notebook(tmp_path).read("gqa") == {}


def test_what_a_kill_cut_short_is_asked_again(tmp_path):
    answer = BaseAnswer("a", First([1], [-0.5], -1.0))
    known = BaseAnswers({"sha256": "0"}, tmp_path)
    known.add([("k1", answer), ("k2", answer)])
    (file,) = known.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-9])

    again = BaseAnswers({"sha256": "0"}, tmp_path)

    assert (again.find("k1"), again.find("k2"), again.find("k3")) == (answer, None, None)
    assert BaseAnswers({"sha256": "1"}, tmp_path).find("k1") is None


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_an_evaluation_goes_on_where_nothing_can_be_kept(run, known, when, monkeypatch, capsys):
    if when == "from the start":
        known.parent.mkdir(parents=True)
        known.touch()
    else:
        monkeypatch.setattr(base_answers, "append_lines", full)

    result, _ = run(quiet=False)

    assert result["questions"] == 7
    said = capsys.readouterr().err
    assert said.count("; the base's answers are not kept") == 1


def full(*_args):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---- The first token -----------------------------------------------------------------------------


def watched(*rows):
    """A beginning that has seen distributions, given as shares."""
    watch = Beginning()
    watch(None, torch.tensor(rows).log())
    watch(None, torch.ones(len(rows), len(rows[0])))  # of the second token, which does not count
    return watch


def test_the_divergence_is_from_the_base_to_the_model_over_first_tokens():
    # Row 0: 1/2 ln 2 + 1/4 ln(1/2) + 1/4 ln 1 = (ln 2)/4, and as much the other way round.
    # Row 1: 3/4 ln(3/2) + 2/8 ln(1/2); the other way round 1/2 ln(2/3) + 2/4 ln 2.
    base = watched([0.5, 0.25, 0.25], [0.75, 0.125, 0.125])
    model = watched([0.25, 0.5, 0.25], [0.5, 0.25, 0.25])

    found = model.divergence(base.likeliest())

    assert found[0] == pytest.approx(math.log(2) / 4, abs=1e-6)
    assert found[1] == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), abs=1e-6)
    assert base.divergence(base.likeliest()) == pytest.approx([0, 0], abs=1e-6)


def test_all_but_the_likeliest_tokens_count_as_one():
    # Both hold 32 of 34 tokens for equally likely, and the other two together for as likely as one
    # of these, which they deal out otherwise: no difference is seen.
    one = 1 / (FIRST_TOKENS + 1)
    base = watched([one] * FIRST_TOKENS + [0.75 * one, 0.25 * one])
    model = watched([one] * FIRST_TOKENS + [0.25 * one, 0.75 * one])

    assert len(base.likeliest()[0].tokens) == FIRST_TOKENS
    assert model.divergence(base.likeliest())[0] == pytest.approx(0, abs=1e-6)


def test_what_the_base_never_says_costs_the_model_nothing_but_its_share():
    first = First([0], [0.0], -math.inf)  # the base is certain

    assert watched([0.5, 0.5, 0.0]).divergence([first]) == pytest.approx([math.log(2)], abs=1e-6)


def test_what_the_model_holds_for_impossible_costs_much_and_not_everything():
    assert watched([1.0, 0.0]).divergence([First([1], [0.0], -math.inf)]) == [NEVER]


def test_the_report_has_the_mean_over_questions_and_none_without_a_base(run, tmp_path):
    result, _ = run()
    alone, _ = run(name="alone", base="none")

    assert result["first_token_kl"] > 0
    assert alone["first_token_kl"] is None
