"""Two reports on benchmarks.

Faults planted and caught: shares shown as fractions; points shown as shares; the score shown twice;
a cost among qualities; the short form of benchmarks shown beside the long one.
"""

import pytest
from rich.console import Console

from tests.reports import write
from victorctl.beside import table
from victorctl.diff import diff
from victorctl.units import DASH, TIMES


def of(title, metric, highest, score, **more):
    """Write what a report has of a benchmark; the base scores twice as much as the first model."""
    pair = {"model": score, "base": highest / 2}
    row = {"model": 0.25, "base": 0.5, "questions": 3, "kept": 0.5, "interval": None}
    return {
        **{"title": title, "questions": 9, "metric": metric, "highest": highest, "score": pair},
        **{"kept": 0.9, "interval": [0.8, 1.0], "agreement": 0.7, "first_token_kl": 0.0132},
        **{"metrics": {metric: pair, **more}, "meanings": {metric: "m"}, "by_type": {"v.1": row}},
        "mean_visual_tokens": {"model": 62.0, "base": 576.0},
    }


def asked(f1, perception):
    """Write a report's keys that are about benchmarks."""
    known = {
        "pope": of("POPE", "f1", 1.0, f1, yes_ratio={"model": 0.5, "base": 0.5}),
        "mme": of("MME", "perception", 2000.0, perception,
                  **{"accuracy/ocr": {"model": 0.875, "base": 0.9}}),
    }  # fmt: skip
    short = {name: {"model": 0.1, "base": 0.2, "kept": 0.5} for name in known}
    return {"benchmarks": known, "by_type": short}


@pytest.fixture
def found(tmp_path):
    one = write(tmp_path / "one", **asked(0.86, 1234.5))
    return diff(one, write(tmp_path / "two", **asked(0.84, 1200.0)))


def lines(result):
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table(result))
    text = shown.get().replace(DASH, "-").replace(TIMES, "x")
    return [" ".join(line.split()) for line in text.splitlines()]


def test_every_score_of_a_benchmark_is_compared(found):
    measured = {row["measure"] for row in found["quality"] if "pope" in row["measure"]}
    parts = ("score", "metrics.f1", "metrics.yes_ratio", "kept", "agreement", "first_token_kl",
             "by_type.v.1", "by_type.v.1.kept")  # fmt: skip
    assert measured == {f"benchmarks.pope.{part}" for part in parts}
    (score,) = (row for row in found["quality"] if row["of"] == "model"
                and row["measure"] == "benchmarks.mme.score")  # fmt: skip
    assert (score["first"], score["second"], score["difference"]) == (1234.5, 1200.0, -34.5)
    assert found["benchmarks"] == {
        "pope": {"title": "POPE", "metric": "f1", "highest": 1.0},
        "mme": {"title": "MME", "metric": "perception", "highest": 2000.0},
    }


def test_what_one_of_the_reports_has_not_asked_is_not_known_there(tmp_path):
    one = write(tmp_path / "one")
    found = diff(one, write(tmp_path / "two", **asked(0.84, 1200.0)))
    assert "MME, perception of 2,000 - 1,200 -" in lines(found)
    assert "what 50.0 % - -" in lines(found)


def test_people_read_shares_in_per_cent_and_points_as_points(found):
    shown = lines(found)
    for expected in (
        "score 50.0 % 50.0 % +0.0 points",
        "POPE, f1 86.0 % 84.0 % -2.0 points",
        "POPE, yes ratio 50.0 % 50.0 % +0.0 points",
        "POPE, kept 90.0 % (80.0-100.0) 90.0 % (80.0-100.0) +0.0 points",
        "POPE, agreement 70.0 % 70.0 % +0.0 points",
        "POPE, KL of the first token, nats 0.0132 0.0132 1.00x",
        "POPE, v.1 25.0 % 25.0 % +0.0 points",
        "POPE, v.1, kept 50.0 % 50.0 % +0.0 points",
        "MME, perception of 2,000 1,234.5 1,200 -34.5",
        "MME, accuracy/ocr 0.875 0.875 +0",
    ):
        assert expected in shown
    assert sum(line.startswith("POPE, f1") for line in shown) == 1
    assert not [line for line in shown if line.startswith(("pope", "mme"))]


def test_visual_tokens_of_a_benchmark_are_a_cost(found):
    costs = [row["measure"] for row in found["cost"]]
    assert costs.count("benchmarks.pope.mean_visual_tokens") == 2  # of the model and the base
    shown = lines(found)
    at = shown.index("POPE, visual tokens per layer 62 62 1.00x")
    assert shown.index("cost first second change") < at < shown.index("speed first second change")


def test_a_benchmark_of_which_a_report_tells_little_is_shown_as_most_are(tmp_path):
    bare = {"pope": {"score": {"model": 0.5}, "title": 3, "highest": "much"}, "gqa": 7}
    places = [write(tmp_path / name, benchmarks=bare) for name in ("one", "two")]
    assert "pope 50.0 % 50.0 % +0.0 points" in lines(diff(*places))
