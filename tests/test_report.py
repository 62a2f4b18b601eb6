"""The report says what was measured, needs nothing else, and hides nothing."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image
from rich.console import Console

from victorctl.report import headline, table, write

TYPES = {"how many": (0.78, 0.83, 600), "colour": (0.91, 0.93, 1400)}
UNTRAINED = "say nothing about what training can reach"


def pair(model, base):
    return {"model": model, "base": base}


def evaluation(settings=(), **changes):
    return {
        "questions": 2000,
        "accuracy": pair(0.879, 0.9035),
        "kept": 0.9729,
        "interval": [0.9612, 0.9843],
        "agreement": 0.931,
        "by_type": {name: {**pair(*both), "questions": n} for name, (*both, n) in TYPES.items()},
        "mean_visual_tokens": pair(33.0, 100),
        "prefill_flops": pair(1.62e8, 4.9e8),
        "omissions": [],
        "cache_bytes": pair(40960, 118784),
        "time_to_first_token": pair(0.02, 0.03),
        "decode_tokens_per_second": pair(211.4, 208.2),
        "speedup": {"prefill": 1.93, "generate_2": 1.55, "generate_128": 1.08},
        "baselines": {"pool": {"accuracy": 0.7716, "kept": 0.854, "mean_visual_tokens": 32.5}},
        "report": "/home/someone/report.html",
        "weights_sha256": "9f86d081",
        "settings": {
            "model": "runs/model",
            "registers": 8,
            "drop_layer": 2,
            "train": "register-lora",
            "base_intact": True,
            "data": "demo:test",
            "dtype": "fp32",
            "threads": 1,
            "speed_batch_size": 16,
            "device": "cpu",
            "versions": {"torch": "2.13.0"},
            "command": "victorctl eval runs/model --data demo:test",
            **dict(settings),
        },
        **changes,
    }


def without_base():
    measured = evaluation()
    pairs = {
        key: pair(value["model"], None)
        for key, value in measured.items()
        if isinstance(value, dict) and set(value) == {"model", "base"}
    }
    nothing = {"kept": None, "interval": None, "agreement": None, "baselines": {}}
    types = {name: {**row, "base": None} for name, row in measured["by_type"].items()}
    speed = dict.fromkeys(measured["speedup"])
    return evaluation(**pairs, **nothing, by_type=types, speedup=speed)


def difference(model_right, base_right, size=(48, 32), question="How many stars?"):
    return {
        "picture": Image.linear_gradient("L").resize(size),
        "question": question,
        "answer": "three",
        "model": "three" if model_right else "two",
        "base": "three" if base_right else "four",
        "type": "how many",
        "model_right": model_right,
        "base_right": base_right,
    }


def sentence(result):
    return "".join(piece for piece, _ in headline(result))


def terminal(result):
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(table(result))
    return console.file.getvalue()


def page(result, folder, differences=()):
    return write(result, differences, folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return page(evaluation(), tmp_path_factory.mktemp("usual"), [difference(False, True)])


class Reader(HTMLParser):
    """Collects the tags, whatever a page would load, and its text line by line."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.lines = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        loading = {"src", "srcset", "href", "xlink:href", "data", "poster", "action"}
        self.loaded += [value for name, value in attributes if name in loading]

    def handle_data(self, data):
        self.lines += [line.strip() for line in data.splitlines() if line.strip()]


# ---- The sentence --------------------------------------------------------------------------------


def test_the_outcome_is_said_in_one_sentence():
    assert sentence(evaluation()) == (
        "Victor with 8 registers keeps 97.3 % of its base's accuracy (95 % interval 96.1\N{EN DASH}"
        "98.4 %) at 33 instead of 100 visual tokens per layer; "
        "its first token takes 0.67\N{MULTIPLICATION SIGN} as long. "
        "The best of the simple ways, pool, keeps 85.4 %."
    )


def test_a_slower_model_is_called_slower_and_no_rival_is_named_that_did_not_run():
    result = evaluation(time_to_first_token=pair(0.06, 0.03), baselines={})

    assert sentence(result).endswith("its first token takes 2.00\N{MULTIPLICATION SIGN} as long.")


def test_without_a_base_nothing_is_claimed_to_be_kept():
    assert sentence(without_base()) == (
        "Victor with 8 registers answers 87.9 % of 2,000 questions right at 33 visual tokens per "
        "layer. No base was run: what it keeps is open."
    )


def test_of_a_base_that_is_never_right_nothing_can_be_kept():
    result = evaluation(accuracy=pair(0.1, 0.0), kept=None, interval=None)

    assert "Its base is never right: what it keeps is open." in sentence(result)


def test_where_there_is_no_interval_it_is_said(tmp_path):
    result = evaluation(interval=None)

    assert "97.3 % of its base's accuracy (too few pictures for an interval) at" in sentence(result)
    assert "95 % interval" not in page(result, tmp_path)


def test_one_register_is_not_called_registers():
    assert sentence(evaluation({"registers": 1})).startswith("Victor with 1 register keeps")


# ---- The table -----------------------------------------------------------------------------------


def test_the_table_sets_cost_and_quality_of_model_and_base_side_by_side():
    rows = [re.split(r"  +", line.strip()) for line in terminal(evaluation()).splitlines()]

    assert ["all", "2,000", "90.3 %", "87.9 %", "97.3 %"] in rows
    assert ["how many", "600", "83.0 %", "78.0 %", "94.0 %"] in rows
    assert ["visual tokens per layer", "100", "33", "0.33\N{MULTIPLICATION SIGN}"] in rows
    assert ["FLOPs, language model", "490 M", "162 M", "0.33\N{MULTIPLICATION SIGN}"] in rows
    assert ["key-value cache", "116 KiB", "40.0 KiB", "0.34\N{MULTIPLICATION SIGN}"] in rows
    assert ["time to first token", "30.0 ms", "20.0 ms", "0.67\N{MULTIPLICATION SIGN}"] in rows
    assert ["128 new tokens", "1.08\N{MULTIPLICATION SIGN}"] in rows
    assert ["base", "100", "90.3 %", "100.0 %"] in rows
    assert ["Victor-8", "33", "87.9 %", "97.3 %"] in rows
    assert ["pool", "32.5", "77.2 %", "85.4 %"] in rows


@pytest.mark.parametrize("result", [evaluation(), evaluation({"train": None}), without_base()])
def test_the_table_fits_eighty_columns(result):
    text = terminal(result)

    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # rich's sign for what it cut off


def test_the_cost_of_seeing_is_shown_where_it_was_counted():
    seen = evaluation(vision_flops=pair(2.1e7, 2.1e7))

    assert "FLOPs, vision" in terminal(seen)
    assert "FLOPs, vision" not in terminal(evaluation())


def test_what_was_not_counted_is_said_beside_the_counts(tmp_path):
    result = evaluation(omissions=["The pixtral tower is not counted: its length depends."])

    assert "The pixtral tower is not counted: its length depends." in terminal(result)
    assert (
        "The pixtral tower is not counted: its length depends."
        in Reader(page(result, tmp_path)).lines
    )


@pytest.mark.parametrize(("train", "said"), [(None, True), ("registers", False)])
def test_an_untrained_model_is_called_untrained_everywhere(tmp_path, train, said):
    result = evaluation({"train": train})

    assert sentence(result).startswith("Untrained Victor") is said
    assert ("untrained" in terminal(result).splitlines()[0]) is said
    assert (UNTRAINED in page(result, tmp_path)) is said


# ---- The page ------------------------------------------------------------------------------------


def test_the_page_needs_no_other_file_and_runs_nothing(usual):
    found = Reader(usual)

    assert {"svg", "img", "table"} <= set(found.tags)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert len(found.loaded) > 1
    assert all(target.startswith(("data:", "#")) for target in found.loaded)
    assert not re.search(r"url\((?!#)|@import", " ".join(found.lines))


def test_the_page_holds_what_the_table_holds_and_how_it_was_measured(usual):
    lines = Reader(usual).lines

    for said in ("97.3 %", "78.0 %", "116 KiB", "20.0 ms", "pool", "77.2 %", "9f86d081", "2.13.0"):
        assert any(said in line for line in lines), said
    assert "victorctl eval runs/model --data demo:test" in lines
    assert lines[lines.index("base intact") + 1] == "yes"


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"threads": 1}, "on cpu in fp32 with 1 thread."),
        ({"threads": 2}, "on cpu in fp32 with 2 threads."),
        ({"device": "NVIDIA H100", "threads": 8}, "on NVIDIA H100 in fp32."),
    ],
)
def test_speeds_stand_beside_what_they_were_measured_on(tmp_path, settings, where):
    lines = Reader(page(evaluation(settings), tmp_path)).lines

    assert f"How many times as fast as the base: 16 questions at once, {where}" in lines


def test_questions_and_answers_cannot_become_markup(tmp_path):
    text = page(
        evaluation(), tmp_path, [difference(False, True, question="<script>x</script> & y")]
    )

    assert "<script>" not in text
    assert "&lt;script&gt;x&lt;/script&gt; &amp; y" in text


def test_right_and_wrong_are_words_and_signs_not_only_colours(usual):
    lines = Reader(usual).lines

    end = lines.index("two") + 2
    right, wrong = "\N{CHECK MARK} right", "\N{BALLOT X} wrong"
    assert lines[end - 6 : end] == ["base", "three", right, "model", "two", wrong]


def test_losses_come_before_what_both_miss_and_what_is_gained(tmp_path):
    asked = {"gained": (True, False), "both": (False, False), "lost": (False, True)}
    cards = [difference(*right, question=name) for name, right in asked.items()]

    lines = Reader(page(evaluation(), tmp_path, cards)).lines

    assert [line for line in lines if line in asked] == ["lost", "both", "gained"]
    assert any("answer 138 questions differently; 3 of them are shown" in line for line in lines)


def test_pictures_lie_in_the_page_at_no_more_than_336_pixels(tmp_path):
    cards = [difference(False, True, size) for size in ((48, 32), (336, 336), (672, 100))]

    found = re.findall(r"data:image/(\w+);base64,([^\"]+)", page(evaluation(), tmp_path, cards))

    assert [kind for kind, _ in found] == ["png", "png", "jpeg"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in found]
    assert [picture.size for picture in pictures] == [(48, 32), (336, 336), (336, 50)]
    assert pictures[0].tobytes() == cards[0]["picture"].convert("RGB").tobytes()


def test_the_page_follows_the_readers_light_or_dark(usual):
    plot = usual[usual.index("<svg") : usual.index("</svg>")]

    assert "prefers-color-scheme: dark" in usual
    assert "currentColor" in plot
    assert "var(--model)" in plot


def test_a_page_without_base_has_no_plot_and_no_comparison(tmp_path):
    found = Reader(page(without_base(), tmp_path))

    assert "svg" not in found.tags
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["report.html", "report.json"]


# ---- The files -----------------------------------------------------------------------------------


def test_the_numbers_are_written_as_they_were_printed_but_for_the_local_path(tmp_path):
    result = evaluation()

    write(result, [difference(False, True)], tmp_path / "new" / "eval")

    written = json.loads((tmp_path / "new" / "eval" / "report.json").read_text(encoding="utf-8"))
    del result["report"]
    assert written == {"schema": "victorctl/eval/1", **result}
    assert next(iter(written)) == "schema"
    assert sorted(path.name for path in (tmp_path / "new" / "eval").iterdir()) == [
        "report.html",
        "report.json",
        "tradeoff.png",
    ]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    old = page(evaluation(), tmp_path)

    with pytest.raises(ValueError, match="not JSON compliant"):
        write(evaluation(agreement=float("nan")), [], tmp_path)

    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


def test_importing_the_report_loads_neither_matplotlib_nor_torch():
    code = "import sys, victorctl.report; print({'matplotlib', 'torch'} & set(sys.modules))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "set()"
