import pytest

from victorctl.data import formats
from victorctl.data.formats import BadRow

CAT = {"role": "assistant", "content": "A cat."}
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def contents(record, images=0):
    return [(turn["role"], turn["content"]) for turn in formats.messages(record, images)]


def test_turns_are_tagged_either_way_in_either_column():
    wanted = [("user", [text("What?")]), ("assistant", [text("A cat.")])]
    sharegpt = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    openai = [{"role": "user", "content": "What?"}, CAT]

    for turns in (sharegpt, openai, [sharegpt[0], openai[1]]):
        assert contents({"conversations": turns}) == contents({"messages": turns}) == wanted


def test_a_column_for_the_system_comes_first_unless_a_turn_is_there():
    turns = [{"role": "user", "content": "What?"}, CAT]
    spoken = {"role": "system", "content": "Be kind."}

    assert contents({"system": "Be brief.", "messages": turns})[0] == (
        "system",
        [text("Be brief.")],
    )
    found = contents({"system": "Be brief.", "messages": [spoken, *turns]})
    assert [who for who, _ in found] == ["system", "user", "assistant"]
    assert found[0][1] == [text("Be kind.")]
    assert contents({"system": None, "messages": turns})[0][0] == "user"


def test_pictures_without_a_place_come_before_the_first_question():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("What?")]},
        CAT,
        {"role": "user", "content": "Else?"},
        CAT,
    ]
    found = contents({"messages": turns}, images=2)

    assert [content for _, content in found[:2]] == [
        [text("Be brief.")],
        [IMAGE] * 2 + [text("What?")],
    ]
    assert found[3][1] == [text("Else?")]
    with pytest.raises(BadRow, match="pictures in the text: 0, in the row: 2"):  # LLaVA is told
        contents({"conversations": turns}, images=2)


def test_the_first_column_that_is_not_empty_tells_the_form():
    row = {"messages": None, "texts": [{"user": "What?", "assistant": "A cat."}], "text": "no"}

    assert formats.form(row).name.startswith("texts")
    assert contents(row, images=1)[0] == ("user", [IMAGE, text("What?")])


@pytest.mark.parametrize("key", ["caption", "text"])
def test_a_caption_answers_a_question_of_ours(key):
    assert contents({key: "A cat."}, images=1) == [
        ("user", [IMAGE, text("Describe the picture.")]),
        ("assistant", [text("A cat.")]),
    ]
    with pytest.raises(BadRow, match="not a row"):
        contents({key: "A cat."})


@pytest.mark.parametrize(
    ("record", "files"),
    [
        ({"images": ["a", {"path": "b", "bytes": None}], "image": "c"}, ["a", "b"]),
        ({"images": [], "image": "c"}, ["c"]),
        ({"file_name": "d"}, ["d"]),
        ({"messages": [{"content": [IMAGE | {"path": "e"}, text("")]}]}, ["e"]),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "file:///f"}}]}]},
         ["/f"]),
        ({"images": ["a"], "messages": [{"content": [IMAGE | {"image": "g"}]}]}, ["a"]),
        ({"messages": [{"content": [IMAGE | {"image": None}]}]}, []),
    ],
)  # fmt: skip
def test_pictures_are_where_people_put_them(record, files):
    assert formats.pictures(record) == files


@pytest.mark.parametrize(
    ("record", "kind", "found"),
    [
        ({"image": "data:image/png;base64,aaaa"}, "missing", "not a file: data:image/png;base64"),
        ({"image": {"url": "a"}}, "form", "not a list of picture files"),
    ],
)
def test_other_pictures_are_refused(record, kind, found):
    with pytest.raises(BadRow, match=found) as error:
        formats.pictures(record)
    assert error.value.kind == kind


@pytest.mark.parametrize(
    ("record", "kind", "found"),
    [
        ({"messages": [CAT | {"role": "tool"}]}, "role", "role 'tool' is a tool's"),
        ({"messages": [CAT | {"role": "bot"}]}, "role", "unknown role 'bot'"),
        ({"messages": [CAT | {"content": ""}, CAT]}, "answer", "an answer is empty"),
        ({"texts": [{"user": "What?", "assistant": None}]}, "answer", "no answer at the end"),
        ({"texts": ["What?"]}, "form", "a text without 'user'"),
        ({"instruction": "What?", "output": "A cat."}, "form", "not a row"),
    ],
)
def test_a_bad_row_says_of_what_kind(record, kind, found):
    with pytest.raises(BadRow, match=found) as error:
        contents(record)
    assert (error.value.kind, kind in formats.KINDS) == (kind, True)
