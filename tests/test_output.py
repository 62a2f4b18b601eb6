import json
from pathlib import Path

import pytest

from victorctl.output import hint, rows, sheet, show, summary, tables
from victorctl.units import DASH

RESULT = {
    "out": Path("a/b"),
    "parity": {"hashes_equal": True, "max_logit_difference": 1.23456e-7},
    "victor": None,
    "visual_tokens": [100, 36],
    "seconds": float("nan"),
}


def test_json_is_one_object_that_starts_with_its_schema(capsys):
    show("convert", RESULT, as_json=True, following="victorctl finetune")

    out, err = capsys.readouterr()
    assert out.startswith('{"schema": "victorctl/convert/1", "out": "a/b"')
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    assert json.loads(out)["parity"] == RESULT["parity"]
    assert err == "next: victorctl finetune\n"


def test_json_has_null_for_a_number_that_is_none_and_refuses_what_it_cannot_say(capsys):
    show("eval", {"a": [float("inf"), 0.5], "b": {"c": float("nan")}}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "schema": "victorctl/eval/1",
        "a": [None, 0.5],
        "b": {"c": None},
    }
    with pytest.raises(TypeError):
        show("eval", {"a": object()}, as_json=True)


def shown(capsys, result, **how):
    show("convert", result, as_json=False, **how)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def test_a_summary_has_one_line_for_each_key_with_inner_keys_below_their_own(capsys):
    assert shown(capsys, RESULT) == [
        "out                     a/b",
        "parity",
        "  hashes_equal          true",
        "  max_logit_difference  1.235e-07",
        f"victor                  {DASH}",
        "visual_tokens           100, 36",
        "seconds                 nan",
    ]


def test_nothing_is_said_of_empty_lists_and_every_sentence_has_its_line(capsys):
    assert shown(capsys, {"warnings": [], "notes": ["one thing", "another"], "k": 2}) == [
        "notes  one thing",
        "       another",
        "k      2",
    ]


def test_of_a_list_of_records_the_first_value_of_each_is_shown(capsys):
    stages = [{"command": "convert", "seed": 3}, {"command": "finetune", "seed": 4}]
    assert shown(capsys, {"lineage": stages}) == ["lineage  convert, finetune"]


def test_text_is_broken_between_words_and_what_has_no_room_beside_its_key_stands_below(capsys):
    long = "/" + "x" * 99  # wider than the terminal
    url = "https://huggingface.co/" + "y" * 51  # 74, one too many
    assert shown(capsys, {"about": "word " * 17, "out": long, "base": f"see {url}"}) == [
        "about  " + " ".join(["word"] * 14),  # 7 + 14 * 5 - 1 = 76
        "       word word word",
        "out",
        "    " + long,
        "base",
        "    see",
        "    " + url,
    ]


def test_bytes_have_a_unit_and_counts_have_commas(capsys):
    show("bench", {"cache_bytes": 3 * 2**20, "steps": 1234}, as_json=False)

    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["cache_bytes  3.00 MiB", "steps        1,234"]


def test_bytes_below_a_key_of_bytes_have_a_unit_too(capsys):
    lines = shown(capsys, {"peak_bytes": {"base": 3 * 2**20}, "parameters": {"all": 5}})
    assert lines == ["peak_bytes", "  base      3.00 MiB", "parameters", "  all       5"]


def test_rows_become_a_table_under_their_keys(capsys):
    checks = [{"check": "disk", "state": "ok"}, {"check": "device [0]", "state": "fail"}]

    show("doctor", {"checks": checks}, as_json=False, table=rows)

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["check", "state"], ["disk", "ok"], ["device", "[0]", "fail"]]


def test_columns_that_do_not_fit_stand_below_their_row_and_empty_ones_are_not_mentioned(capsys):
    name, url = "n" * 30, "https://huggingface.co/" + "y" * 60
    entries = [
        {"check": name, "found": "f" * 40, "fix": f"see {url}"},  # 30 + 2 + 40 leave 6
        {"check": "disk", "found": "ok", "fix": ""},
    ]
    assert shown(capsys, {"checks": entries}, table=rows) == [
        "check                           found",
        f"{name}  {'f' * 40}",
        "    fix: see",
        f"    {url}",
        "disk                            ok",
    ]


def test_the_last_column_is_broken_between_words_where_it_has_room(capsys):
    entries = [{"name": "n" * 50, "about": "word " * 7}, {"name": "short", "about": "one"}]
    assert shown(capsys, {"recipes": entries}, table=rows) == [
        "name" + 48 * " " + "about",
        "n" * 50 + "  word word word word word",  # 80 - 52 = 28 hold 5 words, 24
        52 * " " + "word word",
        "short" + 47 * " " + "one",
    ]


def test_no_rows_are_an_empty_table(capsys):
    show("recipes", {"recipes": []}, as_json=False, table=rows)
    assert capsys.readouterr().out.strip() == ""


def test_square_brackets_are_text(capsys):
    show("inspect", {"family": "[red]llava[/red]"}, as_json=False, table=summary)
    assert "[red]llava[/red]" in capsys.readouterr().out


def test_a_hint_can_be_pasted():
    assert hint("eval", Path("my model"), "--data", None) == "victorctl eval 'my model' --data DATA"
    assert hint("eval", "m", dry_run=True) == "the same without --dry-run"


def test_several_tables_have_an_empty_line_between_them(capsys):
    result = {"families": [{"family": "llava"}], "text_models": [{"text_model": "llama"}]}
    wanted = ["family", "llava", "", "text_model", "llama"]
    assert shown(capsys, result, table=tables) == wanted


def test_a_sheet_shows_lists_of_rows_as_tables_below_and_bytes_as_sizes(capsys):
    machines = [{"name": "small", "fits": False}, {"name": "large", "fits": True}]
    result = {"out": "o", "estimate": {"memory_bytes": {"weights": 2048}, "machines": machines}}

    assert shown(capsys, result, table=sheet) == [
        "out             o",
        "estimate",
        "  memory_bytes",
        "    weights     2.00 KiB",
        "",
        "name   fits",
        "small  false",
        "large  true",
    ]
    assert shown(capsys, {"out": "o"}, table=sheet) == ["out  o"]


def test_a_column_that_stands_below_its_rows_is_left_out_where_it_says_nothing(capsys):
    machines = [{"name": "m" * 70, "change": None}, {"name": "n", "change": "train.steps=1"}]

    found = shown(capsys, {"machines": machines}, table=rows)
    assert [line for line in found if "change" in line] == ["    change: train.steps=1"]
