"""What may be published: checked against its own history, and free of what is the user's own.

Faults planted and caught: the report's hash not compared; paths in the middle of a text kept; every
file of the folder published; the shipped code not compared; NaN let through.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import publishing
from victorctl import lineage
from victorctl.errors import VictorError
from victorctl.release import prepare, scrubbed

PUBLISHED = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.safetensors.index.victor.json",
    "modeling_victor.py",
    "processor_config.json",
    "report.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tradeoff.png",
    "victor.json",
    "victor.safetensors",
}
OTHERS = [
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.bin",
    "training_args.bin",
    "trainer_state.json",
    "more.safetensors.bak",
    "data.json",
    ".env",
    "run.log",
    "modeling_other.py",
    "checkpoint-5/model.safetensors",
    ".cache/token",
]


@pytest.fixture
def model(tmp_path):
    return publishing.trained(tmp_path)


def look(folder, **how):
    return prepare(folder, quiet=True, **how)


def record(folder, **changed):
    """Change the last stage of a model's history."""
    file = folder / "victor.json"
    content = json.loads(file.read_text())
    content["stages"][-1] |= changed
    file.write_text(json.dumps(content))


def test_only_files_that_are_known_are_published(model):
    for name in OTHERS:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("mine")

    found = look(model)

    assert found.files.keys() == PUBLISHED
    tops = {name.split("/")[0] + "/" * ("/" in name) for name in OTHERS}
    assert set(found.left_out) == tops | {"eval/", "loss.jsonl", "loss.png"}


def test_terms_and_a_shard_each_are_published(model):
    (model / "LICENSE.txt").write_text("terms")
    assert look(model).files.keys() == PUBLISHED | {"LICENSE.txt"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/ada/data/cats.json", "cats.json"),
        ("/home/Ada Lovelace/cats.json", "cats.json"),
        ("~/data/cats.json", "cats.json"),
        ("~ada/cats.json", "cats.json"),
        ("eval --data /home/ada/cats.json --seed 0", "eval --data cats.json --seed 0"),
        ("--data='/home/ada/cats.json'", "--data='cats.json'"),
        ("at /mnt/ada/", "at "),
        (r"C:\Users\ada\cats.json", "cats.json"),
        ("C:/Users/ada/cats.json", "cats.json"),
        ("file:///home/ada/cats.json", "cats.json"),
        ("x:/home/ada/cats.json", "cats.json"),
        ("see ../ada/secret/cats.json", "see cats.json"),
        ("eval --data '/home/ada lovelace/My Data/c.json'", "eval --data 'c.json'"),
        ("/home/ada", "~"),
        ("in /home/ada now", "in ~ now"),
        ("file=/home/ada/x", "file=x"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("tokens / second, 1/2, and/or", "tokens / second, 1/2, and/or"),
        ("<s> [/INST] </s>", "<s> [/INST] </s>"),
    ],
)
def test_of_a_path_its_last_part_stays_and_nothing_else_changes(text, left):
    assert scrubbed({"a": [text, 1]}) == {"a": [left, 1]}


def test_no_path_and_no_user_is_published(model, tmp_path):
    secret = "/home/ada-lovelace/private"
    record(model, details=f"{secret}/a.json", settings={"data": [f"see {secret}/b.json"]})
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["_name_or_path"] = f"{secret}/vicuna"
    (model / "config.json").write_text(json.dumps(config | {"_name_or_path": f"{secret}/llava"}))
    report = json.loads((model / "eval" / "report.json").read_text())
    report["settings"]["command"] = f"victorctl eval m --data {secret}/c.json"
    (model / "eval" / "report.json").write_text(json.dumps(report))

    found = look(model)

    for name, content in found.files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert b"lovelace" not in data, name
        assert str(tmp_path).encode() not in data, name
    config["text_config"]["_name_or_path"] = "vicuna"
    assert json.loads(found.files["config.json"]) == config | {"_name_or_path": "llava"}
    assert json.loads(found.files["victor.json"])["stages"][-1]["details"] == "a.json"
    assert json.loads(found.files["report.json"])["settings"]["command"].endswith("--data c.json")


def flip(file):
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


def not_a_number(file):
    state = load_file(file)
    state[min(state)] = state[min(state)] * torch.nan
    save_file(state, file, {"format": "pt"})


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def replace(file, old, new, count=-1):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, count))


INDEX, CODE = "model.safetensors.index.victor.json", "modeling_victor.py"
DAMAGE = {
    "base": lambda folder: flip(folder / "model.safetensors"),
    "registers": lambda folder: flip(folder / "victor.safetensors"),
    "nan": lambda folder: not_a_number(folder / "victor.safetensors"),
    "lost": lambda folder: (folder / "victor.safetensors").unlink(),
    "cut": lambda folder: cut(folder / "model.safetensors"),
    "index": lambda folder: replace(folder / INDEX, "victor.registers", "victor.other"),
    "code": lambda folder: replace(folder / CODE, "import", "import os; import"),
    "custom_generate": lambda folder: (folder / "custom_generate").mkdir(),
    "auto_map": lambda folder: replace(folder / "config.json", "modeling_victor.", "evil/x--y."),
    "record": lambda folder: (folder / "victor.json").unlink(),
    "token": lambda folder: (folder / "chat_template.jinja").write_text(f"hf_{'a1B2' * 9}"),
    "adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "pickle": lambda folder: torch.save({}, folder / "tokenizer.model"),
    "link": lambda folder: (folder / "NOTICE.txt").symlink_to("/etc/hostname"),
    "foreign": lambda folder: replace(folder / "tokenizer_config.json", "{", FOREIGN, 1),
}
FOREIGN = '{"auto_map": {"AutoTokenizer": "evil/x--tok.T"},'
REFUSALS = {
    "base": "its weights are not those that finetune wrote\n  fix: restore the files",
    "registers": "its weights are not those that finetune wrote",
    "nan": "holds NaN or infinity",
    "lost": r"victor.safetensors: no such file",
    "cut": "truncated",
    "index": "tensors are in no shard",
    "code": "it would run other code than the modeling_victor.py of this version\n  fix: cp ",
    "custom_generate": "it would run other code",
    "auto_map": "it would run other code",
    "record": "no victor.json, so nothing says what the model was made from",
    "token": "holds what looks like a token of the Hub",
    "adapter": "an adapter of PEFT",
    "pickle": "tokenizer.model: a pickle, which may run code",
    "link": "NOTICE.txt: a link out of the folder",
    "foreign": "its auto_map names code that is not this package's",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_not_as_it_was_made_is_refused(model, what):
    DAMAGE[what](model)
    with pytest.raises(VictorError, match=REFUSALS[what]):
        look(model)


def test_a_base_that_was_changed_is_not_said_to_be_intact(tmp_path):
    model = publishing.trained(tmp_path, "lora")
    assert look(model).stages[-1]["base_intact"] is False
    record(model, base_intact=True)
    with pytest.raises(VictorError, match="says that the base is intact, and its weights were ch"):
        look(model)


def test_a_model_that_was_never_proved_is_refused(model):
    file = model / "victor.json"
    content = json.loads(file.read_text())
    content["stages"][0]["parity"] = {"hashes_equal": None, "max_logit_difference": None}
    file.write_text(json.dumps(content))
    with pytest.raises(VictorError, match=r"nothing proved, .*\n  fix: convert again, with --ver"):
        look(model)


def test_registers_that_were_never_trained_are_published_on_demand_only(tmp_path):
    folder = publishing.converted(tmp_path)
    with pytest.raises(VictorError, match=r"its registers were never trained.*\n.*--untrained"):
        look(folder)
    assert not look(folder, untrained=True).trained


# ---- Reports -------------------------------------------------------------------------------------


def test_a_report_of_other_weights_is_refused(model):
    file = model / "eval" / "report.json"
    report = json.loads(file.read_text()) | {"weights_sha256": "0" * 64}
    file.write_text(json.dumps(report))
    with pytest.raises(VictorError, match=r"report.json: it was made on other weights than those"):
        look(model)


def test_a_report_elsewhere_is_found_by_file_or_folder(model, tmp_path):
    shutil.move(model / "eval", tmp_path / "measured")
    assert look(model).report is None
    for place in (tmp_path / "measured", tmp_path / "measured" / "report.json"):
        found = look(model, report=place)
        assert found.report["questions"] == 4
        assert found.files["tradeoff.png"] == tmp_path / "measured" / "tradeoff.png"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such report\n  fix: leave --report out, or: victorctl eval "),
        ("{}", "no report of victorctl eval"),
        ('{"schema": "victorctl/eval/1"}', "no report of victorctl eval"),
        ('{"schema": "victorctl/eval/1", "settings": {}, "kept": 1}', "no report of victorctl"),
        ("[", "not JSON"),
    ],
)
def test_what_is_no_report_is_refused(model, tmp_path, content, sentence):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(VictorError, match=f"other.json: {sentence}"):
        look(model, report=file)


def test_a_report_that_came_with_the_model_is_its_report(model):
    shutil.move(model / "eval" / "report.json", model / "report.json")
    assert look(model).report["questions"] == 4


def test_a_plot_of_another_evaluation_is_not_published(model):
    file = model / "eval" / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kept": None}))
    assert "tradeoff.png" not in look(model).files


def test_hashes_are_those_of_what_is_published(model):
    found = look(model)
    stages = lineage.read_lineage(model)["stages"]
    weights = {name: found.hashes[name] for name in found.hashes if name.endswith(".safetensors")}
    assert lineage.hash_of(weights) == stages[-1]["weights_sha256"]
    assert found.hashes.keys() == found.files.keys()
