"""`data check` and `data show`: what they count, list, mark and refuse."""

import json

import pytest
from rich.console import Console

from tests.data import forms
from tests.data.test_bad_rows import BAD, ask, write
from tests.tiny import tiny_llava
from victorctl.data import checking, showing
from victorctl.data.checking import check, demand
from victorctl.data.showing import show
from victorctl.errors import CheckFailed, VictorError


def printed(table, result):
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table(result))
    return capture.get()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llava(tmp_path_factory.mktemp("model")))


def turns(*texts):
    roles = ("human", "gpt")
    return [{"from": roles[place % 2], "value": text} for place, text in enumerate(texts)]


GOOD = [
    ask(),
    {
        "image": ["a.png", "b.png"],
        "conversations": turns("<image> or <image>?", "No.", "So?", "b"),
    },
    {"conversations": turns("Two?", "0")},
]


def test_good_data_are_counted(tmp_path):
    path = write(tmp_path, *GOOD)
    (tmp_path / "b.png").write_bytes(forms.png(1))
    result = check(path, quiet=True)

    counts = {"rows": 3, "conversations": 3, "turns": 8, "pictures": 3, "text_only": 1}
    assert counts.items() <= result.items()
    assert (result["duplicates"], result["bad"], result["kinds"]) == (0, 0, {})
    assert result["form"] == "JSON lines: questions with answers"
    demand(result)


def test_every_bad_row_is_listed_with_its_place_and_counted_by_kind(tmp_path):
    path = write(tmp_path, ask(), *BAD, ask("text.png"), ask("cut.png"), ask("cut.png", "dog"))
    result = check(path, quiet=True)

    assert (result["rows"], result["bad"], result["conversations"]) == (10, 9, 1)
    assert result["kinds"] == {
        "json": 1, "form": 1, "role": 1, "answer": 1, "missing": 2, "broken": 3,
    }  # fmt: skip
    assert [one["place"] for one in result["problems"]] == [f"{path}:{n}" for n in range(2, 11)]
    assert result["problems"][0]["problem"] == f"no such picture: {tmp_path / 'gone.png'}"
    with pytest.raises(CheckFailed, match=r"9 of 10 rows are bad\n.*finetune --skip-bad"):
        demand(result)


def test_a_person_sees_the_first_bad_rows_and_how_many_more(tmp_path):
    path = write(tmp_path, ask(), *[ask("gone.png")] * 12, *[ask()] * 2)
    shown = printed(checking.table, check(path, quiet=True)).splitlines()

    assert shown[0].startswith(f"{path}: JSON lines: questions with answers")
    assert "bad rows          12" in shown
    assert f"{path}:11: no such picture: {tmp_path / 'gone.png'}" in shown
    assert "and 2 more: --json lists all" in shown
    assert f"{path}:15: the same as {path}:1" in shown


def test_the_same_picture_and_words_twice_are_told_whatever_the_file_is_called(tmp_path):
    path = write(tmp_path, ask(), ask("b.png"), ask(answer="dog"), ask("c.png"))
    (tmp_path / "b.png").write_bytes(forms.png(0))
    (tmp_path / "c.png").write_bytes(forms.png(2))
    result = check(path, quiet=True)

    assert result["same"] == [{"place": f"{path}:2", "same_as": f"{path}:1"}]
    assert result["bad"] == 0


@pytest.mark.parametrize("write_form", [forms.saved, forms.webdataset, forms.cauldron_parquet])
def test_stored_pictures_are_decoded_too(tmp_path, monkeypatch, write_form):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    whole = forms.png()
    monkeypatch.setattr(forms, "png", lambda: whole[:60])
    result = check(str(write_form(tmp_path / "data")), quiet=True)

    assert (result["kinds"], result["text_only"]) == ({"broken": 1}, 1)


def test_only_so_many_rows_of_the_demo_and_of_a_mixture(tmp_path):
    forms.llava(tmp_path / "llava")
    (tmp_path / "mix.yaml").write_text("demo: 2\nllava: 1\n")
    result = check(str(tmp_path / "mix.yaml"), rows=2, quiet=True)

    assert (result["rows"], result["conversations"], result["pictures"]) == (4, 18, 3)


def test_a_model_tells_what_is_too_long_and_what_its_template_does_not_take(tmp_path, model):
    path = write(tmp_path, ask(), {"image": "a.png", "question": "cat " * 500, "answer": "cat"})
    result = check(path, model=model, quiet=True)

    # <s> user : 16 visual tokens, a question, assistant : an answer </s>
    assert result["tokens"] == {"mean": (25 + 523) / 2, "longest": 523, "context": 512}
    assert result["problems"] == [
        {
            "place": f"{path}:2",
            "kind": "long",
            "problem": "523 tokens, more than the 512 that the model was made for",
        }
    ]
    with pytest.raises(VictorError, match="no such folder"):
        check(path, model=str(tmp_path / "none"), quiet=True)


def marked(conversation):
    return [part["text"].strip() for part in conversation["parts"] if part["loss"]]


def test_rows_are_shown_with_their_answers_marked(tmp_path):
    path = write(tmp_path, *GOOD)
    (tmp_path / "b.png").write_bytes(forms.png(1))
    first, second, third = show(path, 3)["rows"]

    assert first["pictures"] == [{"name": str(tmp_path / "a.png"), "size": "32x32"}]
    assert [marked(row["conversations"][0]) for row in (first, second, third)] == [
        ["cat"], ["No.", "b"], ["0"],
    ]  # fmt: skip
    assert "".join(part["text"] for part in second["conversations"][0]["parts"]) == (
        "user: <image> or <image> ?\nassistant: No.\nuser: So?\nassistant: b"
    )
    assert len(show(path, 2)["rows"]) == 2


def test_a_model_shows_its_own_text_with_runs_of_placeholders_in_short(tmp_path, model):
    path = write(tmp_path, {"image": "a.png", "conversations": turns("<image>what is it?", "cat",
        "which?", "red dog")})  # fmt: skip
    result = show(path, 1, model=model)
    (said,) = result["rows"][0]["conversations"]

    assert [part["text"] for part in said["parts"]] == [
        "<s> user :", "<image>\N{MULTIPLICATION SIGN}16", "what is it ? assistant :", "cat",
        "user : which ? assistant :", "red dog </s>",
    ]  # fmt: skip
    assert (said["tokens"], said["visual_tokens"], said["answer_tokens"]) == (35, 16, 4)
    assert "«red dog </s>»" in printed(showing.table, result)


def test_rows_that_cannot_be_shown_are_told(tmp_path):
    path = write(tmp_path, ask("gone.png"), ask("cut.png"), ask())
    result = show(path, 3)

    assert len(result["rows"]) == 1
    assert result["bad"][0] == f"{path}:1: no such picture: {tmp_path / 'gone.png'}"
    assert "cut.png: not a readable picture" in result["bad"][1]
    json.dumps(result)
