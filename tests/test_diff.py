"""Faults planted and caught: settings that are the same are listed; what one report lacks is taken
for a difference between machines; the base's numbers are shown where they are the same; intervals
that touch are taken for apart; scores of other questions are not warned of."""

import json
import math

import pytest
from rich.console import Console

from tests.reports import REPORT, line, write
from victorctl.beside import table
from victorctl.diff import diff
from victorctl.units import DASH, TIMES

SAME = [line(n, model="cat") for n in range(4)]


@pytest.fixture
def first(tmp_path):
    return write(tmp_path / "first", SAME)


@pytest.fixture
def compare(first, tmp_path):
    """Compare a report with another one that differs from it in some keys."""

    def run(lines=SAME, **changes):
        return diff(first, write(tmp_path / "second", lines, **changes))

    return run


def row(found, part, measure, of=None):
    (one,) = (row for row in found[part] if (row["measure"], row["of"]) == (measure, of))
    return one


def notes(found):
    return "\n".join(found["notes"])


def printed(found):
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(found))
    return shown.get().replace(DASH, "-").replace(TIMES, "x")


def test_only_settings_that_differ_are_listed(compare):
    found = compare(
        settings={"registers": 4, "versions": {"torch": "2.14.0", "platform": "Linux"},
                  "command": "another"},
        weights_sha256="cc",
    )  # fmt: skip
    assert found["settings"] == [
        {"setting": "registers", "first": 8, "second": 4},
        {"setting": "versions.torch", "first": "2.13.0", "second": "2.14.0"},
        {"setting": "weights_sha256", "first": "aa", "second": "cc"},
    ]
    assert (found["same_weights"], found["same_questions"], found["same_machine"]) == (
        *(False, True, True),
    )


def test_numbers_stand_side_by_side_with_what_the_second_has_more(compare):
    found = compare(
        accuracy={"model": 0.625, "base": 0.75}, kept=0.8333, interval=[0.7, 0.95],
        mean_visual_tokens={"model": 31.0, "base": 576.0},
    )  # fmt: skip
    assert row(found, "quality", "accuracy", "model")["difference"] == 0.125
    assert row(found, "quality", "accuracy", "base")["difference"] == 0
    kept = row(found, "quality", "kept")
    assert (kept["first"], kept["second"]) == (0.6667, 0.8333)
    assert kept["intervals"] == {"first": [0.5, 0.8], "second": [0.7, 0.95]}
    assert row(found, "quality", "by_type.what", "model")["first"] == 0.5
    assert row(found, "quality", "by_type.what.kept")["intervals"]["first"] == [0.2, 0.7]
    assert row(found, "cost", "mean_visual_tokens", "model")["difference"] == -31
    assert row(found, "speed", "speedup.prefill")["first"] == 2.5
    assert not [one for one in found["speed"] if one["measure"] == "speedup.generate_2"]  # no one's


def test_a_report_that_lacks_everything_optional_is_compared(compare):
    optional = set(REPORT) - {"schema", "settings", "accuracy"}
    found = compare(None, without=optional)
    assert found["same_weights"] is None
    assert row(found, "quality", "accuracy", "model")["difference"] == 0
    assert row(found, "quality", "agreement")["second"] is None
    assert " -  " in printed(found)


def test_answers_are_paired_and_the_verdict_is_said(compare):
    found = compare([line(n, model=text) for n, text in enumerate(["no", "dog", "two", "red"])])

    # Right are 1 of 4 (cat) and then 3: units gain 0 and 2 of two questions.
    (ours, theirs) = found["paired"]
    assert (ours["of"], ours["changed"], ours["difference"]) == ("model", 4, 0.5)
    assert (theirs["of"], theirs["changed"]) == ("base", 0)
    assert notes(found) == (
        "both measure the same weights\n"
        "model, data: +50.0 points (25.0 % to 75.0 %; 95 % interval +0.0 to +100.0), which is "
        "within the noise\n"
        "base, data: no answer changed"
    )


def test_more_than_noise_is_said_too_and_too_few_pictures(compare, tmp_path):
    better = compare([line(n, model=text) for n, text in enumerate(["cat", "dog", "two", "red"])])
    assert "interval +50.0 to +100.0), which is more than noise" in notes(better)

    one = write(tmp_path / "one", [line(0, model="cat"), line(1, model="cat")])
    other = write(tmp_path / "other", [line(0, model="no"), line(1, model="no")])
    assert "-50.0 points (50.0 % to 0.0 %); too few pictures to say" in notes(diff(one, other))


def test_other_questions_are_said_to_be_others(compare):
    others = [{**line(n, model="cat"), "id": f"other-{n}"} for n in range(4)]
    found = compare(others, settings={"data": "other.jsonl"})
    assert (found["same_questions"], found["paired"]) == (False, [])
    assert {each["difference"] for each in found["quality"]} == {None}  # says nothing
    assert row(found, "cost", "prefill_flops", "model")["difference"] == 0
    assert row(found, "speed", "speedup.prefill")["difference"] == 0
    assert found["notes"][0] == (
        "no question is in both: other questions were asked (data: q.jsonl and other.jsonl), and "
        "scores over them cannot be compared"
    )


def test_some_shared_questions_are_paired_and_scores_of_all_are_not_compared(compare):
    found = compare(SAME[:3], settings={"limit": 3})
    assert found["paired"][0]["questions"] == 3
    assert found["notes"][0].startswith("3 questions are in both, of 4 and 3: only they are paired")


def test_without_predictions_intervals_are_compared(compare, tmp_path, first):
    found = compare(None, interval=[0.8, 0.9])
    assert "does not lie beside both" in found["notes"][0]
    assert "kept: the intervals overlap, so that the difference may be noise" in notes(found)
    apart = diff(first, write(tmp_path / "third", kept=0.9, interval=[0.81, 0.95]))
    assert "do not overlap, so that the difference is more than noise" in notes(apart)
    other = diff(first, write(tmp_path / "other", interval=[0.9, 1.0], settings={"data": "x"}))
    assert "the intervals" not in notes(other)
    assert "other questions were asked (data: q.jsonl and x)" in other["notes"][0]
    none = diff(first, write(tmp_path / "none", kept=None, interval=None))
    assert "the intervals" not in notes(none)


def test_speeds_of_other_machines_cannot_be_compared(compare, tmp_path, first):
    found = compare(settings={"device": "cpu"})
    assert (found["same_machine"], found["comparable_speeds"]) == (False, False)
    assert "not measured alike (device: NVIDIA H100 and cpu), and cannot be" in notes(found)

    unknown = diff(first, write(tmp_path / "old", SAME, settings={"threads": None}))
    assert (unknown["same_machine"], unknown["comparable_speeds"]) == (True, True)
    untimed = ("time_to_first_token", "decode_tokens_per_second", "speedup")
    silent = write(tmp_path / "untimed", SAME, without=untimed, settings={"device": "cpu"})
    assert "speeds" not in notes(diff(first, silent))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "fp32"}, "dtype: bf16 and fp32"),
        ({"attention": "eager"}, "attention: sdpa and eager"),
        ({"processes": 2}, "processes: 1 and 2"),
        ({"threads": 4}, "threads: 8 and 4"),
        ({"versions": {"torch": "2.14.0"}}, "versions.torch: 2.13.0 and 2.14.0"),
    ],
)
def test_speeds_measured_in_another_way_on_one_machine_cannot_be_compared(tmp_path, changed, named):
    alike = {"dtype": "bf16", "attention": "sdpa", "processes": 1}
    one = write(tmp_path / "one", SAME, settings=alike)
    found = diff(one, write(tmp_path / "two", SAME, settings=alike | changed))
    assert (found["same_machine"], found["comparable_speeds"]) == (True, False)
    assert f"speeds were not measured alike ({named}), and cannot be compared" in notes(found)


def test_on_a_cpu_nobody_knows_which(tmp_path):
    places = [write(tmp_path / name, SAME, settings={"device": "cpu"}) for name in ("a", "b")]
    assert "both were timed on a CPU: whether on one and the same" in notes(diff(*places))


def test_another_base_is_told(compare):
    found = compare(settings={"base_sha256": "xx"})
    assert "their bases differ: what is kept is kept of two different models" in notes(found)


def test_units_that_are_not_known_make_intervals_too_narrow(compare, tmp_path):
    lines = [{key: value for key, value in one.items() if key != "unit"} for one in SAME]
    places = [write(tmp_path / name, lines) for name in ("a", "b")]
    assert "intervals may be too narrow" in notes(diff(*places))


def test_people_read_what_changed_and_the_bases_numbers_only_where_they_differ(compare):
    found = compare(
        accuracy={"model": 0.625, "base": 0.75}, cache_bytes={"model": 2048, "base": 8192},
        weights_sha256="0123456789abcdef" * 4,
    )  # fmt: skip
    lines = [" ".join(text.split()) for text in printed(found).splitlines()]
    for expected in (
        "setting first second",
        "weights_sha256 aa 0123456789ab",
        "right answers 50.0 % 62.5 % +12.5 points",
        "kept 66.7 % (50.0-80.0) 66.7 % (50.0-80.0) +0.0 points",
        "what kept 50.0 % (20.0-70.0) 50.0 % (20.0-70.0) +0.0 points",
        "key-value cache 1.00 KiB 2.00 KiB 2.00x",
        "key-value cache, base 4.00 KiB 8.00 KiB 2.00x",
        "speed-up, prefill 2.50x 2.50x 1.00x",
        "model, data 4 0 0 0 +0.0 points",
    ):
        assert expected in lines
    assert not [text for text in lines if text.startswith("right answers, base")]


def test_everything_fits_into_json(compare):
    found = compare(kept=None, accuracy={"model": 0.0, "base": None})
    assert json.loads(json.dumps(found)) == found
    assert not [one for one in found["quality"] if one["second"] and math.isnan(one["second"])]


@pytest.mark.parametrize("place", ["accuracy", "kept", "by_type", "speedup", "benchmarks"])
def test_a_value_of_another_kind_is_passed_over(compare, place):
    found = compare(**{place: "nonsense"})
    assert found["same_questions"] is True
