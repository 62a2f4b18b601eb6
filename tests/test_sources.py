import pytest
from huggingface_hub import constants

from tests.hub import COMMIT, serving
from victorctl import modeling_victor, sources
from victorctl.errors import VictorError
from victorctl.sources import Source, fetch_weights, open_source

SMALL = [
    "LICENSE.txt",
    "additional_chat_templates/tool.jinja",
    "config.json",
    "model.safetensors.index.json",
    "processor_config.json",
    "tokenizer.model",
]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
OTHERS = [
    "pytorch_model.bin",
    "modeling_evil.py",
    "optimizer.pt",
    "training_args.bin",
    "README.md",
    "onnx/config.json",
    "onnx/model.safetensors",
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    model = tmp_path / "served"
    for name in (*SMALL, *SHARDS, *OTHERS):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)  # the cache keeps equal contents once
    with serving(
        monkeypatch, tmp_path / "cache", {"ada/llava": model, "ada/gated": "GatedRepo"}
    ) as server:
        yield server


def test_a_folder_is_a_source_by_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "llava").mkdir()
    monkeypatch.chdir(tmp_path / "llava")
    assert open_source(str(tmp_path / "llava")) == Source(tmp_path / "llava", "llava", None)
    assert open_source(".").name == "llava"


@pytest.mark.parametrize(
    "source",
    ["/no/such", "./llava", "../llava", "~/llava", "llava", "a/b/c", "models/llava", "a b/c", ""],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(tmp_path, monkeypatch, source):
    (tmp_path / "here" / "models").mkdir(parents=True)  # so models/llava means a folder
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(VictorError, match="no such folder\n  fix: check the path, or give a Hub"):
        open_source(source)


def test_a_file_is_no_source(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("x")
    with pytest.raises(
        VictorError, match="a file, not a model folder\n  fix: give the folder that"
    ):
        open_source(str(file))


def test_a_folder_has_no_revisions(tmp_path):
    with pytest.raises(VictorError, match=r"--revision v2: .* is a folder, which has no revisions"):
        open_source(str(tmp_path), revision="v2")


def test_of_a_hub_id_first_the_small_files_come_then_only_the_weights_that_are_asked_for(hub):
    source = open_source("ada/llava")

    assert (source.name, source.commit) == ("ada/llava", COMMIT)
    assert sorted(hub.fetched) == SMALL

    fetch_weights(source, SHARDS)
    assert sorted(hub.fetched) == sorted(SMALL + SHARDS)
    files = [path for path in source.folder.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(source.folder).as_posix() for path in files) == sorted(
        SMALL + SHARDS
    )


def test_weights_of_a_folder_are_not_fetched(hub, tmp_path):
    fetch_weights(open_source(str(tmp_path)), ["model.safetensors"])
    assert hub.fetched == []


def test_a_commit_is_a_revision(hub):
    assert open_source("ada/llava", revision=COMMIT).commit == COMMIT


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        ("ada/none", None, "ada/none: no such folder, and no such model on the Hub .*\n  fix: che"),
        (
            "ada/gated",
            None,
            "ada/gated: the Hub gives .* accepted its terms\n  fix: accept .*/ada/",
        ),
        ("ada/llava", "v9", "ada/llava: no revision v9 on the Hub\n  fix: leave --revision out"),
    ],
)
def test_says_why_the_hub_refuses(hub, name, revision, sentence):
    with pytest.raises(VictorError, match=sentence):
        open_source(name, revision=revision)


def test_says_that_the_hub_does_not_answer(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(VictorError, match=r"ada/llava: .* does not answer \(ConnectError\)\n  fix"):
        open_source("ada/llava")


def test_offline_what_is_cached_is_used_and_the_rest_is_an_error(hub, monkeypatch):
    open_source("ada/llava")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_source("ada/llava").commit == COMMIT
    with pytest.raises(
        VictorError, match=r"ada/other: .* HF_HUB_OFFLINE keeps the Hub away\n  fix"
    ):
        open_source("ada/other")


def test_demo_is_the_model_that_comes_along_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # as `victorctl demo --out demo` leaves it
    found = open_source("demo")

    assert found.name == open_source(str(found.folder)).name == "demo"
    assert (found.folder / "model.safetensors").is_file()
    (tmp_path / "demo" / "config.json").write_text("{}")
    assert open_source("demo").folder == found.folder
    assert open_source("./demo").folder.resolve() == tmp_path / "demo"


def test_the_names_of_the_bases_files_are_those_that_the_shipped_file_writes():
    for name in ("BASE_WEIGHTS", "BASE_INDEX"):  # it imports nothing of this package
        assert getattr(sources, name) == getattr(modeling_victor, name)
