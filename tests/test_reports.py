import json

import pytest

from tests.reports import line, write
from victorctl.errors import VictorError
from victorctl.reports import open_report


def test_a_report_is_a_file_its_folder_or_in_a_models_folder(tmp_path):
    folder = write(tmp_path / "model" / "eval", [line(0, model="cat")])
    for place in (folder / "report.json", folder, tmp_path / "model"):
        found = open_report(place)
        assert found.file == folder / "report.json"
        assert found.settings["registers"] == 8
        assert [one.texts["model"] for one in found.predictions] == ["cat"]


def test_a_report_without_predictions_beside_it_has_none(tmp_path):
    assert open_report(write(tmp_path / "eval")).predictions is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"report\.json: not JSON"),
        ("[]", r"report\.json: not a JSON object"),
        ("{}", r"no report of victorctl eval\n  fix: give a report\.json that victorctl eval"),
        ('{"schema": "victorctl/bench/1", "settings": {}}', "no report of victorctl eval"),
        ('{"schema": "victorctl/eval/1"}', "no report of victorctl eval"),
        ('{"schema": 7, "settings": {}}', "no report of victorctl eval"),
        ('{"schema": "victorctl/eval/2", "settings": {}}',
         r"a report of version 2, and this victorctl reads victorctl/eval/1\n  fix: use the rel"),
    ],
)  # fmt: skip
def test_what_is_no_report_or_damaged_or_of_another_version_is_refused(tmp_path, text, sentence):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(VictorError, match=sentence):
        open_report(tmp_path)


def test_a_place_without_a_report_says_how_to_get_one(tmp_path):
    with pytest.raises(VictorError, match=r"holds neither report\.json nor eval/report\.json"):
        open_report(tmp_path)
    with pytest.raises(VictorError, match=r"none: no such file or folder"):
        open_report(tmp_path / "none")


DAMAGED = [
    *(b'{"id": 1}', b"no JSON", b"", b"[]", b'{"answers": [[]]}', b'{"id": "\xff"}'),
    *(json.dumps(line(1, model="cat") | {"right": right}).encode() for right in ("yes", [1.0], [])),
    json.dumps(line(1, model="cat") | {"right": {"model": None}}).encode(),
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_prediction_is_named_with_its_line(tmp_path, damage):
    folder = write(tmp_path / "eval", [line(0, model="cat")])
    with (folder / "predictions.jsonl").open("ab") as file:
        file.write(damage + b"\n")
    with pytest.raises(VictorError, match=r"predictions\.jsonl:2: no prediction of victorctl eval"):
        open_report(folder)


def test_marks_of_plain_questions_are_made_up_for_where_they_were_not_kept(tmp_path):
    old = line(0, model="Cat.", base="dog")
    del old["right"]
    known = line(1, model="cat")
    of_benchmark = old | {"benchmark": "pope"}
    found = open_report(write(tmp_path / "eval", [old, known, of_benchmark])).predictions

    assert found[0].right == {"model": 1.0, "base": 0.0}  # case and final punctuation do not count
    assert found[1].right == {"model": 0.0, "base": 0.0}
    assert found[2].right == {}  # only the benchmark knows
    assert [one.task for one in found] == ["data", "data", "pope"]


def test_a_question_that_is_asked_twice_is_two_questions(tmp_path):
    twice = [line(0, model="cat"), line(0, model="dog")]
    found = open_report(write(tmp_path / "eval", twice)).predictions
    assert found[0].key != found[1].key


def test_answers_in_any_alphabet_are_read(tmp_path):
    (tmp_path / "eval").mkdir()
    folder = write(tmp_path / "other")
    text = json.dumps(line(0, model="猫"), ensure_ascii=False)
    (folder / "predictions.jsonl").write_text(text + "\n", encoding="utf-8")
    assert open_report(folder).predictions[0].texts["model"] == "猫"


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_at_a_newline_alone(tmp_path, end):
    folder = write(tmp_path / "eval")
    lines = [json.dumps(line(n, model=f"a{end}b"), ensure_ascii=False) for n in range(2)]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert [one.texts["model"] for one in open_report(folder).predictions] == [f"a{end}b"] * 2
