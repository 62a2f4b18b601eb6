"""Data of any supported format, as rows."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import tiny_data, tiny_picture
from victorctl.data import scenes
from victorctl.data.conversations import Row, open_data
from victorctl.errors import VictorError
from victorctl.questions import questions

IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def write(folder, *records, name="data.json"):
    """Write rows, and the pictures a.png and b.png beside them."""
    for seed, letter in enumerate("ab"):
        tiny_picture(seed).save(folder / f"{letter}.png")
    path = folder / name
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
    return str(path)


def only(folder, record):
    """Read back the one conversation of a record."""
    (row,) = open_data(write(folder, record))
    (conversation,) = row.conversations
    return conversation


def contents(conversation):
    return [(turn["role"], turn["content"]) for turn in conversation.messages]


def problem(spec, **options):
    with pytest.raises(VictorError) as error:
        open_data(spec, **options)
    return error.value.problem


def test_llava_rows_become_turns_of_typed_parts(tmp_path):
    record = {
        "id": "0001",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Red?"},
            {"from": "gpt", "value": "No."},
        ],
    }
    (row,) = open_data(write(tmp_path, record))

    assert (row.id, row.images) == ("0001", (tmp_path / "a.png",))
    assert contents(row.conversations[0]) == [
        ("user", [IMAGE, text("What is it?")]),
        ("assistant", [text("A cat.")]),
        ("user", [text("Red?")]),
        ("assistant", [text("No.")]),
    ]
    assert row.conversations[0].question == "Red?"
    assert row.conversations[0].answers == ("No.",)
    assert row.conversations[0].type == "all"


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("<image>\nWhat?", [IMAGE, text("What?")]),
        ("What?\n<image>", [text("What?"), IMAGE]),
        ("Is <image> it?", [text("Is"), IMAGE, text("it?")]),
        ("<image>", [IMAGE]),
    ],
)
def test_a_marker_becomes_a_picture_where_it_stands(tmp_path, value, parts):
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "A cat."}]

    assert contents(only(tmp_path, {"image": "a.png", "conversations": turns}))[0] == (
        "user",
        parts,
    )


def test_several_pictures_keep_their_order_and_their_turns(tmp_path):
    turns = [
        {"from": "human", "value": "<image> and?"},
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "two"},
    ]
    record = {"image": ["b.png", "a.png"], "conversations": turns}
    (row,) = open_data(write(tmp_path, record))

    found = [picture.getpixel((0, 0)) for picture in row.pictures()]
    assert found == [tiny_picture(seed).getpixel((0, 0)) for seed in (1, 0)]
    assert contents(row.conversations[0])[2] == ("user", [IMAGE])


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": ""}, {"images": []}])
def test_a_row_without_a_picture_is_text_and_its_answer_may_be_a_number(tmp_path, image):
    turns = [{"from": "human", "value": "2 - 2?"}, {"from": "gpt", "value": 0}]
    (row,) = open_data(write(tmp_path, {**image, "conversations": turns}))

    assert (row.images, row.pictures()) == ((), [])
    said = [("user", [text("2 - 2?")]), ("assistant", [text("0")])]
    assert contents(row.conversations[0]) == said


@pytest.mark.parametrize(
    "content", ["<image>What?", [IMAGE, text("What?")], [text("<image>What?")]]
)
@pytest.mark.parametrize("image", [{"images": ["a.png"]}, {"image": "a.png"}])
def test_messages_have_strings_or_typed_parts(tmp_path, content, image):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "A cat."},
    ]

    assert contents(only(tmp_path, {**image, "messages": turns})) == [
        ("system", [text("Be brief.")]),
        ("user", [IMAGE, text("What?")]),
        ("assistant", [text("A cat.")]),
    ]


@pytest.mark.parametrize(
    ("given", "said", "accepted"),
    [
        ({"answer": "cat"}, "cat", ("cat",)),
        ({"answer": 0}, "0", ("0",)),
        # Not the first, not the last, not the longest: the most frequent.
        ({"answers": ["kitten", "cat", "cat", "dog"]}, "cat", ("kitten", "cat", "cat", "dog")),
        ({"answers": "dog"}, "dog", ("dog",)),
        ({"answer": "dog", "answers": ["cat", "dog"]}, "dog", ("cat", "dog")),
    ],
)
def test_a_question_with_its_answers_is_a_conversation_of_one_turn(tmp_path, given, said, accepted):
    conversation = only(tmp_path, {"image": "a.png", "question": "What is it?", **given})

    assert contents(conversation) == [
        ("user", [IMAGE, text("What is it?")]),
        ("assistant", [text(said)]),
    ]
    assert conversation.question == "What is it?"
    assert conversation.answers == accepted


def test_a_question_may_say_where_its_pictures_belong(tmp_path):
    record = {"images": ["a.png", "b.png"], "question": "Is <image> <image>?", "answer": "no"}

    assert contents(only(tmp_path, record))[0] == ("user", [text("Is"), IMAGE, IMAGE, text("?")])


@pytest.mark.parametrize(
    ("said", "type_"), [({}, "all"), ({"type": "count"}, "count"), ({"category": "ocr"}, "ocr")]
)
def test_the_type_is_what_the_row_says(tmp_path, said, type_):
    assert only(tmp_path, {"question": "Two?", "answer": "yes", **said}).type == type_


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_rows_come_in_order_and_only_so_many_as_asked(tmp_path, name):
    records = [{"question": "Which?", "answer": str(index)} for index in range(5)]
    path = write(tmp_path, *records, name=name)

    assert [row.id for row in open_data(path)] == ["0", "1", "2", "3", "4"]
    table = open_data(path, rows=3)
    assert (len(table), table[-1].id, [row.id for row in table[1:]]) == (3, "2", ["1", "2"])
    assert len(open_data(path, rows=9)) == 5
    with pytest.raises(IndexError):
        table[3]


def ask(answer, *images, **more):
    marks = "<image>" * len(images)
    return {"images": images, "question": f"{marks}Which?", "answer": answer, **more}


def test_records_about_the_same_pictures_are_one_row_in_the_place_of_the_first(tmp_path):
    records = [
        ask("0", "b.png"),
        ask("1"),
        ask("2", "a.png", "b.png", id="pair"),
        ask("3", "b.png", id="later", type="count"),
        ask("4", "b.png", "a.png"),
        ask("5"),
        ask("6", "./b.png"),
    ]
    table = open_data(write(tmp_path, *records))

    found = {row.id: [said.answers[0] for said in row.conversations] for row in table}
    assert found == {"0": ["0", "3", "6"], "1": ["1"], "pair": ["2"], "4": ["4"], "5": ["5"]}
    assert list(found) == [row.id for row in table] == ["0", "1", "pair", "4", "5"]
    assert [said.type for said in table[0].conversations] == ["all", "count", "all"]
    assert [[file.name for file in row.images] for row in table][2:4] == [
        ["a.png", "b.png"],
        ["b.png", "a.png"],
    ]
    assert (len(table), table.conversations) == (5, 7)


def test_rows_of_text_can_be_left_out(tmp_path):
    path = write(
        tmp_path, ask("0"), ask("1", "a.png"), ask("2"), ask("3", "b.png"), ask("4", "a.png")
    )
    table = open_data(path).with_pictures()

    assert [row.id for row in table] == ["1", "3"]
    assert (len(table), table.conversations, list(table.pictured)) == (2, 3, [0, 1])
    assert table.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert len(open_data("demo:test").with_pictures()) == 500


def test_only_so_many_means_records_not_rows(tmp_path):
    path = write(tmp_path, *(ask(str(number), "ab"[number % 2] + ".png") for number in range(6)))

    found = [[said.answers[0] for said in row.conversations] for row in open_data(path, rows=3)]
    assert found == [["0", "2"], ["1"]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["q7", "q9"], ["q7", "q9"]),
        (["coco", "coco"], ["coco/0", "coco/1"]),  # the picture's name, as LLaVA's data has it
        (["q7", None], ["q7", "1"]),
    ],
)
def test_questions_of_a_joined_row_have_names_of_their_own(tmp_path, names, expected):
    named = [{"id": name} if name else {} for name in names]
    table = open_data(write(tmp_path, *(ask("cat", "a.png", **name) for name in named)))

    assert [question.id for question in questions(table, None)] == expected


def test_an_error_in_a_joined_row_names_its_own_record(tmp_path):
    path = write(tmp_path, ask("cat", "a.png"), {"image": "a.png", "question": "What?"})

    assert problem(path) == f"{path}[1]: no answer at the end"


def test_lines_after_those_asked_for_are_not_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "Two?", "answer": "yes"}\n\nbroken')

    assert len(open_data(str(path), rows=1)) == 1
    assert problem(str(path)) == f"{path}:3: not JSON: Expecting value"


def test_rows_are_cheap_until_their_pictures_are_asked_for(tmp_path, monkeypatch):
    table = open_data(str(tiny_data(tmp_path, count=3)))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened a picture"))

    assert [row.id for row in table] == ["row-0", "row-1", "row-2"]
    assert all(len(row.conversations[0].messages) == 4 for row in table)


def test_pictures_come_upright_in_rgb_from_files_pictures_and_functions(tmp_path):
    grey = Image.new("L", (4, 2), 10)
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # orientation: the camera was turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    pictures = Row("row", (tmp_path / "turned.jpg", grey, lambda: grey), ()).pictures()

    assert [picture.mode for picture in pictures] == ["RGB"] * 3
    assert [picture.size for picture in pictures] == [(2, 4), (4, 2), (4, 2)]


def test_a_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no picture")

    with pytest.raises(VictorError, match=r"a\.png: not a readable picture") as error:
        Row("row", (path,), ()).pictures()
    assert "start it again with --overwrite" in error.value.fix


def test_a_picture_that_breaks_off_is_named(tmp_path):
    path = tmp_path / "a.png"
    tiny_picture(0, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(VictorError, match=r"a\.png: not a readable picture"):
        Row("row", (path,), ()).pictures()


QUESTION = {"from": "human", "value": "<image>What?"}
ANSWER = {"from": "gpt", "value": "A cat."}


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"image": "a.png", "conversations": [QUESTION]}, "no answer at the end"),
        ({"image": "a.png", "conversations": []}, "no answer at the end"),
        ({"image": "a.png", "messages": None}, "no answer at the end"),
        ({"image": "a.png", "conversations": [QUESTION, ANSWER, QUESTION]}, "no answer at the end"),
        (
            {"image": "a.png", "conversations": [QUESTION, {"from": "gpt", "value": " "}]},
            "no answer at the end",
        ),
        ({"image": "a.png", "question": "What?"}, "no answer at the end"),
        ({"conversations": [QUESTION, ANSWER]}, "pictures in the text: 1, in the row: 0"),
        (
            {"image": ["a.png", "b.png"], "conversations": [QUESTION, ANSWER]},
            "pictures in the text: 1, in the row: 2",
        ),
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": "What?"}, ANSWER]},
            "pictures in the text: 0, in the row: 1",
        ),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "unknown role 'bot'"),
        ({"conversations": [{"who": "user", "content": "Hi"}]}, "a turn without 'from' or 'role'"),
        ({"conversations": ["Hi"]}, "a turn without 'from' or 'role'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "content of type 'video'",
        ),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "content of type None"),
        ({"image": 3, "question": "What?", "answer": "cat"}, "not a list of picture files: 3"),
        ({"text": "Hi"}, "not a row"),
        ("Hi", "not a row"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_when_the_data_is_opened(tmp_path, record, found):
    good = {"question": "Two?", "answer": "yes"}

    path = write(tmp_path, good, record)
    assert problem(path) == f"{path}[1]: {found}"
    path = write(tmp_path, good, record, name="data.jsonl")
    assert problem(path) == f"{path}:2: {found}"


def test_a_missing_picture_is_named_with_its_row(tmp_path):
    record = {"image": "no/such.png", "question": "What?", "answer": "cat"}
    path = write(tmp_path, record)

    assert problem(path) == f"{path}[0]: no such picture: {tmp_path / 'no/such.png'}"


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("data.json", b'[{"question": "Two?",\n "answer" "yes"}]', ":2: not JSON: Expecting ':'"),
        ("data.jsonl", b"\n\n{", ":3: not JSON: Expecting property name"),
        ("data.json", b'{"question": "Two?"}', ": holds no list of rows"),
        ("data.json", b"[]", ": holds no rows"),
        ("data.json", b" \n", ": holds no rows"),
        ("data.jsonl", b"", ": holds no rows"),
        ("data.json", b'["\xff"]', ": not UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, data, found):
    path = tmp_path / name
    path.write_bytes(data)

    assert problem(str(path)).startswith(f"{path}{found}")


@pytest.mark.parametrize("spec", ["no/such.json", "demo:train", "data.txt"])
def test_data_that_does_not_exist_is_named_with_what_does(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("[]")
    (tmp_path / "demo").mkdir()  # which demo:train is no part of

    with pytest.raises(VictorError) as error:
        open_data(spec)
    there = "not data that can be read" if spec == "data.txt" else "no such data"
    assert error.value.problem == f"{spec}: {there}"
    assert error.value.fix.startswith("use one of: demo, demo:test, a file (.json, .jsonl, .csv")


@pytest.mark.parametrize(
    ("spec", "split", "size", "questions"),
    [("demo", "train", 20_000, 8), ("demo:test", "test", 500, 4)],
)
def test_the_demos_rows_are_its_scenes_with_their_questions(spec, split, size, questions):
    table = open_data(spec)
    row, scene = table[3], scenes.scene(3, split)

    assert (len(table), len(open_data(spec, rows=7))) == (size, 7)
    assert row.pictures()[0].tobytes() == scene.picture().tobytes()
    for conversation, asked in zip(row.conversations, scene.questions(questions), strict=True):
        assert contents(conversation) == [
            ("user", [IMAGE, text(asked.text)]),
            ("assistant", [text(asked.answer)]),
        ]
        assert conversation.type == asked.type
