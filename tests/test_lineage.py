import hashlib
import json
from pathlib import Path

import pytest

from victorctl import weights
from victorctl.errors import VictorError
from victorctl.lineage import add_stage, base_intact, hash_of, read_lineage, weights_sha256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"base")
    (tmp_path / "victor.safetensors").write_bytes(b"registers")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def note(folder, **given):
    stage = {
        "command": "convert",
        "settings": {"victor": {"registers": 8}},
        "parent_sha256": "ab",
        "seed": 3,
        "base_intact": True,
    }
    return add_stage(folder, **(stage | given))


def test_the_weight_hash_is_that_of_sorted_lines_of_name_and_hash_of_each_weight_file(folder):
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"base", b"registers"))
    lines = f"model.safetensors {one}\nvictor.safetensors {two}\n"
    assert weights_sha256(folder) == hashlib.sha256(lines.encode()).hexdigest()
    assert hash_of({"victor.safetensors": two, "model.safetensors": one}) == weights_sha256(folder)


def test_hashes_that_are_known_are_not_computed_again(folder, monkeypatch):
    expected, computed = weights_sha256(folder), []
    whole = weights.sha256
    known = {"model.safetensors": whole(folder / "model.safetensors")}
    monkeypatch.setattr(weights, "sha256", lambda file: computed.append(file.name) or whole(file))
    assert weights_sha256(folder, known) == expected
    assert computed == ["victor.safetensors"]


def test_a_folder_without_a_record_has_an_empty_lineage_and_an_unproved_base(tmp_path):
    assert read_lineage(tmp_path) == {"schema": "victorctl/lineage/1", "stages": []}
    assert base_intact(tmp_path) is False


@pytest.mark.parametrize(
    "twist",
    [
        {"stages": 5},
        {"stages": ["convert"]},
        {"stages": [{"command": "convert"}]},
        {"schema": "another"},
        {"parent_sha256": None},
        {"base_intact": "yes"},
        {"source": "llava"},
        {"settings": []},
    ],
)
def test_a_record_that_is_none_is_refused(folder, twist):
    note(folder)
    record = json.loads((folder / "victor.json").read_text())
    if "stages" in twist or "schema" in twist:
        record = twist
    else:
        record["stages"][0] |= twist
    (folder / "victor.json").write_text(json.dumps(record))

    with pytest.raises(VictorError, match=r"victor.json: not a record of stages"):
        read_lineage(folder)


def test_every_stage_adds_an_entry_and_the_last_one_says_whether_the_base_is_intact(folder):
    own = note(folder, details={"source": {"name": "llava-hf/llava", "commit": "0" * 40}})
    assert base_intact(folder)
    (folder / "victor.safetensors").write_bytes(b"trained")
    trained = note(folder, command="finetune", parent_sha256=own, seed=4, base_intact=False)

    stages = read_lineage(folder)["stages"]

    assert [stage["command"] for stage in stages] == ["convert", "finetune"]
    assert [stage["seed"] for stage in stages] == [3, 4]
    assert stages[0]["settings"] == {"victor": {"registers": 8}}
    assert stages[0]["source"] == {"name": "llava-hf/llava", "commit": "0" * 40}
    assert stages[0]["weights_sha256"] == stages[1]["parent_sha256"] == own
    assert stages[1]["weights_sha256"] == trained == weights_sha256(folder) != own
    assert {"victorctl", "torch", "transformers", "python", "platform"} <= set(
        stages[0]["versions"]
    )
    assert stages[0]["time"].endswith("+00:00")
    assert not base_intact(folder)


def test_a_base_is_intact_only_while_its_files_are_those_of_the_source(folder):
    source = {"model.safetensors": weights.sha256(folder / "model.safetensors")}
    note(folder, parent_sha256=hash_of(source))
    (folder / "victor.safetensors").write_bytes(b"trained")
    note(folder, command="finetune", parent_sha256="cd")

    assert base_intact(folder, source)
    assert not base_intact(folder, {"model.safetensors": "ef"})


def test_the_record_names_no_folder_of_this_machine(folder, monkeypatch):
    (folder / "mine").mkdir()
    (folder / "mine" / "rows.json").write_text("[]")
    monkeypatch.chdir(folder)
    note(
        folder,
        settings={
            "data": {"train": "/home/ada/secret/rows.json", "eval": "mine/rows.json"},
            "more": ["~/ada/rows.json", "../ada/rows.json", Path("/home/ada/rows.json")],
            "kept": ["demo:test", "llava-hf/llava-1.5-7b-hf", 2e-3, None, True],
        },
    )
    (stage,) = read_lineage(folder)["stages"]
    assert stage["settings"] == {
        "data": {"train": "rows.json", "eval": "rows.json"},
        "more": ["rows.json"] * 3,
        "kept": ["demo:test", "llava-hf/llava-1.5-7b-hf", 2e-3, None, True],
    }
    text = (folder / "victor.json").read_text()
    for private in ("ada", "secret", "mine", str(folder), Path.home().name + "/"):
        assert private not in text


@pytest.mark.parametrize(("content", "sentence"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_a_damaged_record_is_an_error(folder, content, sentence):
    (folder / "victor.json").write_text(content)
    with pytest.raises(VictorError, match=rf"victor\.json: {sentence}"):
        read_lineage(folder)
    assert json.loads((folder / "config.json").read_text()) == {}
