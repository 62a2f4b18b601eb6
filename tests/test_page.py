"""The page of an evaluation is whole, loads nothing, hides nothing, and can be read by anybody."""

import base64
import hashlib
import io
import re
from importlib.resources import files

import pytest
from PIL import Image

from tests.evaluations import (
    difference,
    evaluation,
    of_benchmarks,
    of_today,
    pair,
    without_base,
)
from tests.reading import read
from victorctl.outcome import Kept
from victorctl.page import LEAST, MOST, Scale, page

DASH = "\N{EN DASH}"
UNTRAINED = "say nothing about what training can reach"
PLOT = '<svg><path d="M0 0"/></svg>'


@pytest.fixture(scope="module")
def usual():
    return read(evaluation(), [difference(False, True)], plots={"tradeoff": PLOT, "speedup": PLOT})


@pytest.fixture(scope="module")
def benchmarks():
    return read(of_benchmarks(), [difference(False, True, benchmark="pope", id="random-7")])


# ---- What is on it -------------------------------------------------------------------------------


def test_it_needs_no_other_file_and_asks_browsers_to_load_none(usual):
    assert len(usual.loaded) > 1
    assert all(target.startswith(("data:", "#")) for target in usual.loaded)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in usual.tags}
    assert not re.search(r"url\((?!#)|@import", " ".join(usual.lines))
    (policy,) = usual.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'; img-src data:;" in policy["content"]


def test_the_only_script_is_the_one_that_came_along(usual):
    script = files("victorctl").joinpath("assets", "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    text = page(evaluation(), [], {}).decode()

    assert text.count("<script") == 1
    assert f"<script>{script}</script>" in text
    (policy,) = usual.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert f"script-src 'sha256-{digest}';" in policy["content"]
    assert not [one for _, one in usual.tags for name in one if name.startswith("on")]


def test_it_holds_what_the_table_holds_and_how_it_was_measured(usual):
    for said in ("97.3 %", "78.0 %", "116 KiB", "20.0 ms", "pool", "77.2 %", "9f86d081", "2.13.0"):
        assert any(said in line for line in usual.lines), said
    assert "victorctl eval runs/model --data demo:test" in usual.lines
    assert usual.lines[usual.lines.index("base intact") + 1] == "yes"
    assert any("awk '{print $2, $1}'" in line for line in usual.lines)


def test_hashes_of_base_and_data_are_told_where_they_are_known(benchmarks):
    lines = read(of_today()).lines

    start = lines.index("weights")
    assert lines[start : start + 6] == ["weights", "9f86d081", "base", "ba5e", "data", "da7a"]
    assert {"data, pope", "data, mme"} <= set(benchmarks.lines)


def test_settings_of_every_kind_are_written_as_words():
    settings = {"nothing": None, "no_name": (), "several": ["pope", "mme"], "off": False}

    lines = read(evaluation({**settings, "nested": {"a": True, "b": 0.5}})).lines

    written = {"nothing": DASH, "no name": DASH, "off": "no"}
    written |= {"several": "pope, mme", "nested": "a: yes, b: 0.5"}
    assert {name: lines[lines.index(name) + 1] for name in written} == written


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"threads": 1}, "16 questions at once, on cpu in fp32 with 1 thread."),
        ({"threads": 2}, "16 questions at once, on cpu in fp32 with 2 threads."),
        ({"device": "NVIDIA H100", "threads": 8, "speed_batch_size": 1},
         "1 question at once, on NVIDIA H100 in fp32."),
    ],
)  # fmt: skip
def test_speeds_stand_beside_what_they_were_measured_on(settings, where):
    assert f"How many times as fast as the base: {where}" in read(evaluation(settings)).lines


def test_all_scores_of_a_benchmark_unfold_with_their_meanings(benchmarks):
    assert len(benchmarks.all("details")) == 2
    lines = benchmarks.lines
    start = lines.index("MME: all its scores")
    assert lines[start + 1 : lines.index("points/...") + 2] == [
        *("At 34 visual tokens per layer; the base has 576.", "score", "base", "model"),
        *("perception", "1,400", "1,432.2"),
        *("points/count", "140", "150"),
        *("accuracy/count", "0.800", "0.812"),  # a share, but nothing says so
        *("points/...", "points of a category, of 200"),
    ]
    start = lines.index("recall")
    assert lines[start : start + 3] == ["recall", "80.0 %", DASH]


@pytest.mark.parametrize(
    ("result", "note"),
    [
        (evaluation(baselines={}), "The simple ways of dropping visual tokens were not run"),
        (evaluation(interval=None), "there are too few pictures"),
        (evaluation(omissions=["The tower is not counted."]), "The tower is not counted."),
        (evaluation(time_to_first_token=pair(None, None)), "No speed was measured."),
        (of_today({"limit": 2000}), "2,000 questions from demo:test (the first, by eval.limit)."),
        (of_today({"limit": 3000}), "2,000 questions from demo:test."),
        (of_today(), "Within noise: the interval holds 100 %"),
    ],
)
def test_what_was_not_measured_and_what_cannot_be_told_is_said(result, note):
    assert any(note in line for line in read(result, plots={"tradeoff": PLOT}).lines)


def test_scores_of_a_part_of_a_benchmark_are_not_taken_for_its_own():
    result = of_benchmarks()
    result["settings"]["limit"] = 9000  # all of MME's 2,374 questions were asked

    assert any("Only the first 9,000 were asked of POPE: " in line for line in read(result).lines)


def test_a_part_may_have_some_more_questions_than_its_limit():
    result = of_benchmarks("mme")  # of 2,374 questions
    for limit, cut in ((2373, True), (2375, False)):
        result["settings"]["limit"] = limit
        said = f"Only the first {limit:,} were asked of MME: "
        assert any(said in line for line in read(result).lines) is cut


@pytest.mark.parametrize(("train", "said"), [(None, True), ("registers", False)])
def test_an_untrained_model_is_called_untrained(train, said):
    assert (UNTRAINED in " ".join(read(evaluation({"train": train})).lines)) is said


@pytest.mark.parametrize("measured", [evaluation(), of_today(), of_benchmarks()])
def test_without_a_base_there_is_no_plot_and_no_comparison(measured):
    found = read(without_base(measured))

    assert not found.all("figure")
    assert not {"kept", "base", "95 % interval", "same answers"} & set(found.lines)
    assert not any("Kept is" in line for line in found.lines)


def test_one_question_makes_a_page():
    row = {**pair(1.0, 1.0), "questions": 1, "kept": 1.0, "interval": None}
    result = of_today(questions=1, by_type={"all": row}, baselines={}, kept=1.0, interval=None)

    assert any(line.startswith("1 question from demo:test.") for line in read(result).lines)


# ---- Intervals as bars ---------------------------------------------------------------------------


def test_a_scale_holds_what_is_kept_and_a_hundred_percent():
    assert Scale.of([Kept(0.93, (0.91, 0.95)), Kept(None)]) == (0.9, 1.05)
    assert Scale.of([Kept(1.02, (0.97, 1.071))]) == (0.95, 1.1)
    assert Scale.of([Kept(0.1), Kept(9.0)]) == (LEAST, MOST)


def test_a_bar_reaches_from_end_to_end_of_its_interval():
    scale = Scale(0.8, 1.2)  # 160 wide: 4 for each per cent

    assert [scale.x(share) for share in (0.8, 0.9, 1.0, 1.2)] == [0, 40, 80, 160]
    assert [(scale.x(share), scale.off(share)) for share in (0.5, 1.5, 1.0)] == [
        (0, -1),
        (160, 1),
        (80, 0),
    ]


def test_bars_stand_beside_their_numbers_and_a_dot_off_the_scale_is_an_arrow():
    rows = {
        "sure": {**pair(0.8, 1.0), "questions": 9, "kept": 0.8, "interval": [0.7, 0.9]},
        "off": {**pair(0.1, 1.0), "questions": 9, "kept": 0.1, "interval": None},
    }
    found = read(of_today(by_type=rows, baselines={}, interval=None))

    # Of 0.5 to 1.05 over 160, a share of 0.1 is 29.1 wide.
    (reach,) = found.all("line", **{"class": "reach"})
    assert (reach["x1"], reach["x2"]) == ("58.2", "116.4")
    assert len(found.all("circle")) == 2  # the whole and the sure one
    assert [path["d"] for path in found.all("path")] == ["M0.0 9l7 4v-8z"]
    assert found.all("svg", **{"class": "bar", "aria-hidden": "true"})


# ---- Answers that differ -------------------------------------------------------------------------


@pytest.mark.parametrize("evil", ["<script>x</script> & y", '"><img src=x onerror=y>', "{{ 7*7 }}"])
def test_questions_and_answers_cannot_become_markup(evil):
    shown = difference(False, True, question=evil, model=evil, base=evil, answer=evil, id=evil)
    result = of_benchmarks()
    result["benchmarks"]["pope"] |= {"title": evil, "meanings": {evil: evil}}
    result["benchmarks"]["pope"]["metrics"] = {evil: pair(0.5, 0.5)}
    result["settings"] |= {"model": evil, "command": evil, "more": evil}

    found = read(result, [shown | {"type": evil, "benchmark": "pope"}])

    assert len(found.all("script")) == 1
    assert not found.all("img")
    assert sum(line == evil for line in found.lines) >= 10


def test_any_script_can_be_read_from_its_own_side():
    text = page(evaluation(), [difference(False, True, question="ما هذا؟ 日本 🦊")], {}).decode()

    assert '<p dir="auto">ما هذا؟ 日本 🦊</p>' in text


def test_right_and_wrong_are_words_and_signs_not_only_colours(usual):
    end = usual.lines.index("two") + 2
    right, wrong = "\N{CHECK MARK} right", "\N{BALLOT X} wrong"

    assert usual.lines[end - 6 : end] == ["base", "three", right, "model", "two", wrong]


def test_an_empty_answer_is_called_nothing():
    assert "(nothing)" in read(evaluation(), [difference(False, True, model="")]).lines


def test_losses_come_before_what_both_miss_and_what_is_gained():
    asked = {
        "gained": (True, False),
        "worded": (True, True),
        "both": (False, False),
        "lost": (False, True),
    }
    cards = [difference(*right, question=name) for name, right in asked.items()]

    found = read(evaluation(), cards)

    assert [line for line in found.lines if line in asked] == ["lost", "both", "gained", "worded"]
    assert any("answer 138 questions differently; 4 of those with" in line for line in found.lines)
    assert [card["data-who"] for card in found.all("article")] == [
        "only the base is right",
        "both are wrong",
        "only the model is right",
        "both are right",
    ]


def test_the_filter_offers_what_there_is_with_counts():
    cards = [
        difference(False, True),
        difference(False, True, type="colour"),
        difference(False, False),
    ]

    found = read(evaluation(), cards)

    assert [one["value"] for one in found.all("input", name="who")] == [
        *("", "only the base is right", "both are wrong")
    ]
    assert {"all (3)", "only the base is right (2)", "both are wrong (1)"} <= set(found.lines)
    assert [one["value"] for one in found.all("option")] == ["", "colour", "how many"]
    assert {"colour (1)", "how many (2)"} <= set(found.lines)
    assert found.all("input", type="search", name="text")
    assert "3 of 3 shown" in found.lines


def test_without_javascript_every_answer_is_shown_and_no_dead_filter(usual):
    (form,) = usual.all("form")

    assert "hidden" in form
    assert not [card for card in usual.all("article") if "hidden" in card]


def test_answers_of_benchmarks_are_told_apart_by_benchmark(benchmarks):
    (card,) = benchmarks.all("article")

    assert card["data-group"] == "POPE"
    assert benchmarks.all("input", type="hidden", name="group")  # one alone is no choice
    assert {"random-7", "how many"} <= set(benchmarks.lines)


def test_pictures_lie_in_the_page_at_no_more_than_336_pixels():
    cards = [difference(False, True, size) for size in ((48, 32), (336, 336), (672, 100))]

    found = read(evaluation(), cards)

    kinds, data = zip(
        *(re.fullmatch(r"data:image/(\w+);base64,(.+)", one["href"]).groups()
          for one in found.all("image")), strict=True,
    )  # fmt: skip
    assert kinds == ("png", "png", "jpeg")
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in data]
    assert [picture.size for picture in pictures] == [(48, 32), (336, 336), (336, 50)]
    assert pictures[0].tobytes() == cards[0]["picture"].convert("RGB").tobytes()
    assert [one["width"] for one in found.all("image")] == ["48", "336", "336"]


def test_a_photograph_is_not_kept_without_loss():
    noise = Image.effect_noise((336, 336), 80)

    (kept,) = read(evaluation(), [difference(False, True) | {"picture": noise}]).all("image")

    assert kept["href"].startswith("data:image/jpeg")


def test_a_picture_that_several_questions_are_about_lies_there_once():
    cards = [difference(False, True), difference(True, False), difference(False, True, (9, 9))]

    found = read(evaluation(), cards)

    assert len(found.all("image")) == 2
    assert [one["href"] for one in found.all("use")] == ["#picture-0", "#picture-1", "#picture-0"]


# ---- For everybody -------------------------------------------------------------------------------


def test_tables_have_captions_and_heads_of_rows_and_columns(usual, benchmarks):
    for found in (usual, benchmarks):
        heads = found.all("th")
        assert len(found.all("caption")) == len(found.all("table")) >= 4
        assert heads
        assert all(head["scope"] in ("col", "row") for head in heads)
        ids = {one["id"] for _, one in found.tags if "id" in one}
        assert {one["aria-labelledby"] for one in found.all("div", role="region")} <= ids


def test_pictures_have_words(usual):
    described = usual.all("div", role="img")
    assert len(described) == 2
    assert all(one["aria-label"] for one in described)
    assert usual.all("svg", role="img")[0]["aria-label"]


def contrast(one, other):
    """Work out the contrast of two colours as WCAG 2.2 defines it."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(
            share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
        )

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_light_and_dark():
    style = files("victorctl").joinpath("assets", "report.css").read_text(encoding="utf-8")
    modes = [dict(re.findall(r"--([\w-]+): (#\w+);", one)) for one in style.split("@media")[:2]]

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for mode in modes:
        colours = {name: "#ffffff" if value == "#fff" else value for name, value in mode.items()}
        for name in ("ink", "muted", "model", "right", "wrong"):
            for ground in ("paper", "tint"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert contrast(colours["warn"], colours["warn-tint"]) >= 4.5


def test_it_follows_the_readers_light_or_dark(usual):
    style = " ".join(usual.lines)

    assert "@media screen and (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    assert usual.all("meta", name="color-scheme", content="light dark")
