"""The same two rows in every form: one with the picture `tiny_picture(0)`, one of text."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from tests.tiny import tiny_picture

TURNS = [("user", "What is this?"), ("assistant", "A cat.")]
TEXT = [("user", "Two - two?"), ("assistant", "0")]
PAIR = {"user": Value("string"), "assistant": Value("string"), "source": Value("string")}


def png(seed: int = 0) -> bytes:
    stored = io.BytesIO()
    tiny_picture(seed).save(stored, "PNG")
    return stored.getvalue()


def picture_file(folder: Path) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "a.png").write_bytes(png())
    return "a.png"


def tagged(turns, role, content, **names):
    return [{role: names.get(who, who), content: said} for who, said in turns]


def in_json(folder: Path, *rows: dict, name: str = "data.json") -> Path:
    picture_file(folder)
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def llava(folder: Path) -> Path:
    names = {"user": "human", "assistant": "gpt"}
    shown = [("user", "<image>\nWhat is this?"), TURNS[1]]
    return in_json(
        folder,
        {"image": "a.png", "conversations": tagged(shown, "from", "value", **names)},
        {"conversations": tagged(TEXT, "from", "value", **names)},
    )


def llama_factory(folder: Path) -> Path:
    shown = [("user", "<image>What is this?"), TURNS[1]]
    return in_json(
        folder,
        {"images": ["a.png"], "conversations": tagged(shown, "role", "content"), "system": ""},
        {"images": [], "messages": tagged(TEXT, "from", "value", user="human", assistant="gpt")},
    )


def trl(folder: Path) -> Path:
    """Texts without a marker, and pictures that datasets write as files."""
    return in_json(
        folder,
        {"images": [{"bytes": None, "path": "a.png"}], "messages": tagged(TURNS, *TAGS)},
        {"images": None, "messages": tagged(TEXT, *TAGS)},
    )


TAGS = ("role", "content")


def typed(folder: Path) -> Path:
    """Pictures that are named inside the turns."""
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}]
    turns = [{"role": "user", "content": parts}, *tagged(TURNS[1:], *TAGS)]
    return in_json(folder, {"messages": turns}, {"messages": tagged(TEXT, *TAGS)})


def cauldron_parquet(folder: Path) -> Path:
    folder.mkdir()
    cauldron().to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def cauldron() -> Dataset:
    return Dataset.from_list(
        [
            {"images": [{"bytes": png(), "path": None}], "texts": [said(TURNS)]},
            {"images": [], "texts": [said(TEXT)]},
        ],
        features=Features({"images": List(Image()), "texts": List(PAIR)}),
    )


def said(turns):
    return dict(turns) | {"source": "ours"}


def vqa() -> Dataset:
    rows = [
        {
            "image": {"bytes": png(), "path": "a.png"},
            "question": TURNS[0][1],
            "answer": TURNS[1][1],
        },
        {"image": None, "question": TEXT[0][1], "answer": TEXT[1][1]},
    ]
    kinds = {"image": Image(), "question": Value("string"), "answer": Value("string")}
    return Dataset.from_list(rows, features=Features(kinds))


def parquet_folder(folder: Path) -> Path:
    """Two files of one row each; the split for tests is not taken."""
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        vqa().select([number]).to_parquet(folder / "data" / f"train-0000{number}-of-00002.parquet")
    vqa().to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def saved(folder: Path) -> Path:
    vqa().save_to_disk(folder)
    return folder


def saved_splits(folder: Path) -> str:
    DatasetDict({"train": vqa().select([1]), "validation": vqa()}).save_to_disk(folder)
    return f"{folder}:validation"


def webdataset(folder: Path) -> Path:
    folder.mkdir()
    samples = [
        ("b/1.png", png()),
        ("b/1.json", {"image": "elsewhere.png", "question": TURNS[0][1], "answer": TURNS[1][1]}),
        ("b/2.json", {"question": TEXT[0][1], "answer": int(TEXT[1][1])}),  # not a text, as there
    ]
    with tarfile.open(folder / "data.tar", "w") as archive:
        for name, content in samples:
            stored = content if isinstance(content, bytes) else json.dumps(content).encode()
            about = tarfile.TarInfo(name)
            about.size = len(stored)
            archive.addfile(about, io.BytesIO(stored))
    return folder / "data.tar"


def metadata_csv(folder: Path) -> Path:
    picture_file(folder)
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["file_name", "question", "answer"],
                ["a.png", TURNS[0][1], TURNS[1][1]],
                ["", TEXT[0][1], TEXT[1][1]],
            ]
        )
    return folder


def metadata_jsonl(folder: Path) -> Path:
    picture_file(folder / "train")
    rows = [
        {"file_name": "a.png", "question": TURNS[0][1], "answers": [{"answer": TURNS[1][1]}]},
        {"question": TEXT[0][1], "answer": TEXT[1][1]},
    ]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def jsonl_folder(folder: Path) -> Path:
    """A file for each row."""
    rows = json.loads(llava(folder).read_text())
    (folder / "data.json").unlink()
    for number, row in enumerate(rows):
        (folder / f"part-{number}.jsonl").write_text(json.dumps(row))
    return folder


FORMS: dict[Callable, str] = {
    llava: "JSON: conversations, as LLaVA and ShareGPT have them",
    llama_factory: "JSON: conversations, as LLaVA and ShareGPT have them",
    trl: "JSON: messages",
    typed: "JSON: messages",
    jsonl_folder: "2 files of JSON lines: conversations, as LLaVA and ShareGPT have them",
    cauldron_parquet: "parquet: texts, as the_cauldron and FineVision have them",
    parquet_folder: "2 parquet files: questions with answers",
    saved: "Arrow, written by save_to_disk: questions with answers",
    saved_splits: "Arrow, written by save_to_disk: questions with answers",
    webdataset: "WebDataset: questions with answers",
    metadata_csv: "folder of pictures with metadata.csv: questions with answers",
    metadata_jsonl: "folder of pictures with metadata.jsonl: questions with answers",
}
"""What writes each form, and what it is recognised as."""
