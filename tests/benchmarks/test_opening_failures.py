"""What is wrong with a benchmark's data is said: where, what is expected, and what to type."""

import json

import pytest

from tests.benchmarks import storage
from tests.data.dataset_hub import serving
from victorctl.benchmarks.opening import check_copies, open_benchmark
from victorctl.errors import VictorError


def refused(name, data_dir):
    with pytest.raises(VictorError) as error:
        open_benchmark(name, data_dir=data_dir, limit=None, quiet=True)
    return error.value


def fetch(repo, *files, home):
    parts = " ".join(f"--include '{each}'" for each in files)
    return f"hf download {repo} --repo-type dataset {parts} --local-dir {home}"


def chartqa(data_dir, *changes, drop=()):
    """Store ChartQA with a row for each change."""
    rows = [storage.rows("chartqa")[0] | change for change in changes]
    rows = [{key: cell for key, cell in row.items() if key not in drop} for row in rows]
    return storage.store("chartqa", data_dir, "jsonl", own=rows)


def test_a_copy_that_is_not_there(tmp_path):
    error = refused("vqav2", tmp_path)

    assert error.problem == f"{tmp_path}/vqav2: no such folder, and no file of that name"
    assert error.fix == (
        "put data with the columns image, question, question_id, answers there; or: "
        + fetch("lmms-lab-encoder/VQAv2", "*validation*", home=f"{tmp_path}/vqav2")
    )


def test_all_copies_that_are_not_there_are_named_at_once(tmp_path):
    (tmp_path / "docvqa" / "InfographicVQA").mkdir(parents=True)  # its home is there: read it
    (tmp_path / "chartqa.jsonl").write_text("")

    with pytest.raises(VictorError) as error:
        check_copies(["chartqa", "vqav2", "docvqa", "mme"], tmp_path)

    assert error.value.problem == f"{tmp_path}: no folder or file called vqav2, mme"
    assert error.value.fix == " && ".join(
        fetch(f"lmms-lab-encoder/{repo}", files, home=f"{tmp_path}/{repo.lower()}")
        for repo, files in (("VQAv2", "*validation*"), ("MME", "*test*"))
    )
    check_copies(["chartqa", "docvqa"], tmp_path)
    check_copies(["mme"], None)


def test_pictures_that_are_stored_apart_and_not_there(tmp_path):
    storage.jsonl(tmp_path, "testdev", storage.rows("gqa"))
    (tmp_path / "data.jsonl").rename(tmp_path / "gqa.jsonl")
    error = refused("gqa", tmp_path)

    assert error.problem.startswith(f"{tmp_path}/gqa/testdev_balanced_images: no such folder")
    assert error.fix.endswith(
        fetch(
            "lmms-lab-encoder/GQA",
            "testdev_balanced_instructions/*testdev*",
            "testdev_balanced_images/*testdev*",
            home=f"{tmp_path}/gqa",
        )
    )


def test_a_picture_that_is_not_among_those_stored_apart(tmp_path):
    storage.store("gqa", tmp_path, "jsonl", beside=storage.rows("gqa.beside")[1:])
    error = refused("gqa", tmp_path)

    place = f"{tmp_path}/gqa/testdev_balanced_instructions/data.jsonl:1"
    assert error.problem == f"{place}: no picture imageId n161313"
    assert error.fix == "add it to testdev_balanced_images, where id is its name"


def test_a_row_of_pictures_without_a_name(tmp_path):
    storage.store("gqa", tmp_path, "jsonl", beside=[{"image": "0.png"}])

    assert refused("gqa", tmp_path).problem.endswith("data.jsonl:1: no id or no image")


def test_columns_that_are_missing(tmp_path):
    error = refused("chartqa", chartqa(tmp_path, {}, drop=("answer", "type")))

    assert error.problem == (
        f"{tmp_path}/chartqa: no column answer, type; ChartQA (test) has image, question, answer, "
        "type; there: image, question"
    )
    assert error.fix.startswith(
        "call the columns as lmms-lab-encoder/ChartQA does; or: hf download"
    )


def test_no_rows(tmp_path):
    (tmp_path / "chartqa.jsonl").write_text("\n")

    assert refused("chartqa", tmp_path).problem == f"{tmp_path}/chartqa: holds no rows"


def test_a_folder_without_data(tmp_path):
    (tmp_path / "chartqa").mkdir()
    error = refused("chartqa", tmp_path)

    assert error.problem == f"{tmp_path}/chartqa: a folder without data"
    assert "; or: hf download lmms-lab-encoder/ChartQA" in error.fix


def test_another_split(tmp_path):
    storage.parquet(tmp_path, "train", storage.rows("chartqa"))
    (tmp_path / "data").rename(tmp_path / "chartqa")
    error = refused("chartqa", tmp_path)

    assert error.problem == f"{tmp_path}/chartqa: no split 'test'"
    assert error.fix.startswith(
        "let the names of its files say test; there: train; or: hf download"
    )


def test_two_questions_of_one_id(tmp_path):
    rows = storage.rows("vqav2")
    storage.store("vqav2", tmp_path, "jsonl", own=[*rows, rows[1]])

    assert refused("vqav2", tmp_path).problem == (
        f"{tmp_path}/vqav2/data.jsonl:4: id 42001 is also that of {tmp_path}/vqav2/data.jsonl:2"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": "none.png"}, "no such picture: {home}/none.png"),
        ({"image": "https://x.org/a.png"}, "not a file: https://x.org/a.png"),
        ({"image": 7}, "not a list of picture files: 7"),
        ({"image": None}, "pictures in the question: 1, in the row: 0"),
        ({"image": ["0.png", "0.png"]}, "pictures in the question: 1, in the row: 2"),
        ({"answer": None}, "answer is no text: None"),
        ({"question": ["What?"]}, "question is no text: ['What?']"),
    ],
)
def test_a_row_that_cannot_be_used(change, problem, tmp_path):
    chartqa(tmp_path, {}, {})
    file = tmp_path / "chartqa" / "data.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0]}\n{json.dumps(json.loads(lines[1]) | change)}\n")

    wanted = problem.format(home=tmp_path / "chartqa")
    assert refused("chartqa", tmp_path).problem == f"{file}:2: {wanted}"


def test_a_question_that_nobody_answered(tmp_path):
    rows = [row | {"answers": []} for row in storage.rows("vizwiz")]
    storage.store("vizwiz", tmp_path, "jsonl", own=rows)
    error = refused("vizwiz", tmp_path)

    assert error.problem == f"{tmp_path}/vizwiz/data.jsonl:1: no right answer is given"
    assert error.fix == "use the split whose answers are public"


def test_answers_of_people_that_nothing_tells_apart(tmp_path):
    rows = [row | {"answers": ["two"] * 10} for row in storage.rows("vqav2")]
    storage.store("vqav2", tmp_path, "jsonl", own=rows)

    assert refused("vqav2", tmp_path).problem.endswith(":1: an answer without answer_id: 'two'")


def test_a_list_that_is_not_json(tmp_path):
    storage.store("vizwiz", tmp_path, "csv")
    file = tmp_path / "vizwiz" / "val.csv"
    file.write_text(file.read_text().replace('[""unans', "[unans", 1))

    assert "val.csv:2: answers is not JSON: [unanswerable" in refused("vizwiz", tmp_path).problem


@pytest.mark.parametrize(("line", "problem"), [("{", "not JSON"), ("[1]", "not a row")])
def test_a_line_that_is_no_row(line, problem, tmp_path):
    (tmp_path / "chartqa.jsonl").write_text(f"{line}\n")
    error = refused("chartqa", tmp_path)

    assert error.problem.startswith(f"{tmp_path}/chartqa.jsonl:1: {problem}")
    assert "hf download" not in error.fix


def test_no_row_that_asks(tmp_path, monkeypatch):
    monkeypatch.setattr("victorctl.benchmarks.chartqa.ChartQA.ask", lambda *_: None)
    error = refused("chartqa", chartqa(tmp_path, {}))

    assert error.problem == f"{tmp_path}/chartqa: no row is a question of ChartQA (test)"


def test_a_benchmark_that_there_is_not(tmp_path):
    error = refused("vqa", tmp_path)

    assert error.problem == "no benchmark called 'vqa'"
    assert error.fix.startswith("did you mean vqav2? use one of: ai2d")


def test_a_hub_that_does_not_have_it(tmp_path, monkeypatch):
    with serving(monkeypatch, tmp_path / "cache", {}):
        error = refused("vqav2", None)

    assert error.problem.startswith("lmms-lab-encoder/VQAv2: ")
    wanted = fetch("lmms-lab-encoder/VQAv2", "*validation*", home="DIR/vqav2")
    assert error.fix.endswith(f"; or: {wanted}, and add --data-dir DIR")
