"""The report sums up in the terminal and writes files that need nothing else."""

import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image
from rich.console import Console

from tests.evaluations import (
    difference,
    evaluation,
    of_benchmarks,
    of_today,
    pair,
    without_base,
)
from victorctl.report import table, write

PLOTS = ["speedup.png", "speedup.svg", "tradeoff.png", "tradeoff.svg"]
UNTIMED = {
    "time_to_first_token": pair(None, None),
    "speedup": dict.fromkeys(("prefill", "generate_2", "generate_128")),
}
NOISE = "\N{ALMOST EQUAL TO}"


def terminal(result):
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(table(result))
    return console.file.getvalue()


def rows(result):
    return [re.split(r"  +", line.strip()) for line in terminal(result).splitlines()]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- The table -----------------------------------------------------------------------------------


def test_scores_of_a_part_of_a_benchmark_are_said_to_be_that():
    result = of_benchmarks()
    result["settings"]["limit"] = 9000  # all of MME's 2,374 questions were asked
    said = " ".join(terminal(result).split())
    assert "Only the first 9,000 were asked of POPE: scores of a part are not comparable" in said


def test_the_table_sets_cost_and_quality_of_model_and_base_side_by_side():
    shown, times, dash = rows(evaluation()), "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

    assert ["all", "2,000", "90.3 %", "87.9 %", "97.3 %", f"96.1{dash}98.4"] in shown
    assert ["how many", "600", "83.0 %", "78.0 %", "94.0 %", dash] in shown
    assert ["visual tokens per layer", "100", "33", f"0.33{times}"] in shown
    assert ["FLOPs, language model", "490 M", "162 M", f"0.33{times}"] in shown
    assert ["key-value cache", "116 KiB", "40.0 KiB", f"0.34{times}"] in shown
    assert ["time to first token", "30.0 ms", "20.0 ms", f"0.67{times}"] in shown
    assert ["128 new tokens", f"1.08{times}"] in shown
    assert ["base", "100", "90.3 %", "100.0 %", dash, f"1.00{times}"] in shown
    assert ["Victor-8", "33", "87.9 %", "97.3 %", f"96.1{dash}98.4", f"1.93{times}"] in shown
    assert ["pool", "32.5", "77.2 %", "85.4 %", dash, dash] in shown


def test_the_table_lists_benchmarks_and_how_like_the_base_their_answers_are():
    shown = rows(of_benchmarks())

    assert ["benchmark", "questions", "base", "model", "kept", "95 % interval"] in shown
    interval = f"99.0\N{EN DASH}103.0 {NOISE}"
    assert ["mean of 2", "11,374", "78.0 %", "78.8 %", "101.0 %", interval] in shown
    assert ["MME, perception of 2,000", "91.0 %", "0.0400"] in shown


def test_the_table_has_no_columns_for_a_base_that_was_not_run():
    assert ["right answers", "questions", "model"] in rows(without_base())
    assert ["all", "2,000", "87.9 %"] in rows(without_base())


def test_the_sign_for_noise_is_explained_where_it_stands():
    meaning = f"{NOISE} within noise of the base: the interval holds 100 %"

    assert terminal(of_today()).count(meaning) == 1
    assert NOISE not in terminal(evaluation())


def long_names():
    """Names and numbers as wide as they come."""
    result = of_benchmarks()
    result["benchmarks"]["pope"] |= {"title": "a benchmark " * 5, "interval": [0.98, 1.12345]}
    result["baselines"]["no-registers"] = result["baselines"]["pool"] | {"interval": [0.99, 1.01]}
    return result


@pytest.mark.parametrize(
    "result",
    [evaluation(), evaluation({"train": None}), without_base(), of_today(), long_names()],
)
def test_the_table_fits_eighty_columns(result):
    text = terminal(result)

    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # rich's sign for what it cut off


@pytest.mark.parametrize(("train", "said"), [(None, True), ("registers", False)])
def test_an_untrained_model_is_called_untrained_at_once(train, said):
    assert ("untrained" in terminal(evaluation({"train": train})).splitlines()[0]) is said


def test_what_was_not_counted_or_timed_is_said_beside_what_was():
    text = terminal(evaluation(omissions=["The pixtral tower is not counted."], **UNTIMED))

    assert "The pixtral tower is not counted." in text
    assert "No speed was measured." in text
    assert "times as fast" not in text


# ---- The files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "eval"
    write(of_today(), [difference(False, True)], folder)
    return folder


def test_the_numbers_are_written_as_they_were_printed_but_for_the_local_path(written):
    numbers = json.loads((written / "report.json").read_text(encoding="utf-8"))
    result = of_today()

    del result["report"]
    assert numbers == {"schema": "victorctl/eval/1", **result}
    assert next(iter(numbers)) == "schema"


def test_plots_are_written_beside_the_page_and_into_it(written):
    assert files(written) == sorted([*PLOTS, "report.html", "report.json"])
    for plot in ("tradeoff", "speedup"):
        with Image.open(written / f"{plot}.png") as picture:
            assert picture.size == (1160, 780)  # 5.8 x 3.9 inches at 200 dpi
        text = (written / f"{plot}.svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "#ffffff" in text  # a paper of its own: it has no page whose colours it could take
        assert "var(" not in text
    page = (written / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 50  # two plots in one page: each id once
    assert {name.partition("-")[0] for name in ids} >= {"tradeoff", "speedup"}
    assert all(name in ids for name in re.findall(r'href="#([^"]+)"', page))


def test_plots_of_an_evaluation_before_go_with_it(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "eval")

    write(without_base(), [], folder)

    assert files(folder) == ["report.html", "report.json"]
    assert "<figure>" not in (folder / "report.html").read_text(encoding="utf-8")


def test_without_speeds_there_is_one_plot(tmp_path):
    write(evaluation(baselines={}, **UNTIMED), [], tmp_path)

    assert files(tmp_path) == ["report.html", "report.json", "tradeoff.png", "tradeoff.svg"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No speed was measured, so there is no plot against it." in text


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    old = write(without_base(), [], tmp_path).read_text(encoding="utf-8")

    with pytest.raises(ValueError, match="not JSON compliant"):
        write(evaluation(first_token_kl=float("nan")), [], tmp_path)

    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


def test_importing_the_report_loads_neither_matplotlib_nor_torch():
    code = "import sys, victorctl.report; print({'matplotlib', 'torch'} & set(sys.modules))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "set()"
