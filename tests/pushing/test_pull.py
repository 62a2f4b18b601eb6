"""A published model comes back byte for byte, proved, or not at all; and others can load it.

Faults planted and caught: the Hub's hashes not compared; the history not compared.
"""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests import publishing
from tests.converting import left
from tests.converting import run as convert
from tests.keeping import TOKEN
from victorctl.errors import VictorError
from victorctl.pull import pull
from victorctl.recipe import Run

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # their own


def fetch(out, repo="ada/victor", **how):
    return pull(repo, run=Run(out=out, quiet=True), **how)


def test_what_was_pushed_comes_back_byte_for_byte(hub, model, tmp_path):
    pushed = publishing.run(model)

    found = fetch(tmp_path / "back")

    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        file["path"] for file in pushed["files"]
    }
    for path in (tmp_path / "back").iterdir():
        assert path.read_bytes() == hub.files("ada/victor")[path.name]
    assert (found["commit"], found["stages"]) == (pushed["commit"], ["convert", "finetune"])


def test_a_pulled_model_is_pushed_again_without_a_change(hub, model, tmp_path):
    publishing.run(model)
    fetch(tmp_path / "back")
    report = tmp_path / "back" / "report.json"

    assert publishing.run(tmp_path / "back", report=str(report))["commit"] is None


def test_a_pulled_folder_is_replaced_unless_its_page_has_words_of_ones_own(hub, model, tmp_path):
    publishing.run(model)
    how = Run(out=tmp_path / "back", quiet=True, overwrite=True)
    pull("ada/victor", run=how)
    pull("ada/victor", run=how)
    with (tmp_path / "back" / "README.md").open("a") as page:
        page.write("Mine.")
    with pytest.raises(VictorError, match=r"holds more than victorctl wrote there: README.md"):
        pull("ada/victor", run=how)


def test_a_branch_is_pulled_by_its_name(hub, model, tmp_path):
    hub.make("ada/victor")
    publishing.run(model, revision="trial")
    with pytest.raises(VictorError, match="ada/victor: not a Victor model\n  fix: victorctl c"):
        fetch(tmp_path / "back")
    assert fetch(tmp_path / "back", revision="trial")["out"] == str(tmp_path / "back")


@pytest.mark.parametrize(
    "name", ["victor.safetensors", "model.safetensors", "tokenizer.json", "modeling_victor.py"]
)
def test_a_file_that_was_damaged_is_refused_and_nothing_stays(hub, model, tmp_path, name):
    publishing.run(model)
    fetch(tmp_path / "back")
    (blob,) = {path.resolve() for path in (tmp_path / "cache").rglob(name)}
    content = bytearray(blob.read_bytes())
    content[-2] ^= 1
    blob.write_bytes(content)

    with pytest.raises(VictorError, match=f"{name} is not the file that the Hub holds.*\n.*rm "):
        fetch(tmp_path / "again")

    assert not (tmp_path / "again").exists()


def test_weights_that_the_history_does_not_know_are_refused(hub, model, tmp_path):
    publishing.run(model)
    files, repo = hub.files("ada/victor"), hub.repos["ada/victor"]
    record = json.loads(files["victor.json"])
    record["stages"][-1]["weights_sha256"] = "0" * 64
    changed = files | {"victor.json": json.dumps(record).encode()}
    repo.branches["main"] = repo.commit(changed, "forged")

    with pytest.raises(VictorError, match=r"its weights are not those that victor.json records"):
        fetch(tmp_path / "back")


def test_weights_of_no_index_are_refused_and_other_folders_not_fetched(hub, model, tmp_path):
    publishing.run(model)
    repo, files = hub.repos["ada/victor"], hub.files("ada/victor")
    more = {"step-5/model.safetensors": b"x", "onnx/model.safetensors": b"y"}
    repo.branches["main"] = repo.commit(files | more, "more")
    fetch(tmp_path / "back")
    assert not any("step-5" in line or "onnx" in line for line in hub.asked)

    repo.branches["main"] = repo.commit(files | {"extra.safetensors": b"x"}, "more")
    with pytest.raises(VictorError, match=r"extra.safetensors is in no index"):
        fetch(tmp_path / "again")


def test_only_victor_models_are_pulled(hub, tmp_path):
    hub.make("ada/llava", {"config.json": b'{"model_type": "llava"}'})
    with pytest.raises(VictorError, match="ada/llava: not a Victor model"):
        fetch(tmp_path / "back", "ada/llava")
    with pytest.raises(VictorError, match="a folder, not a model on the Hub"):
        fetch(tmp_path / "back", str(tmp_path))


def test_a_base_that_was_damaged_on_its_way_is_not_converted(hub, tmp_path):
    from tests.tiny import tiny_llava

    files = {path.name: path.read_bytes() for path in tiny_llava(tmp_path / "llava").iterdir()}
    hub.make("ada/llava", files)
    convert("ada/llava", tmp_path / "victor")
    (blob,) = {path.resolve() for path in (tmp_path / "cache").rglob("model.safetensors")}
    content = bytearray(blob.read_bytes())
    content[-2] ^= 1
    blob.write_bytes(content)

    with pytest.raises(VictorError, match=r"ada/llava: model.safetensors is not the file that the"):
        convert("ada/llava", tmp_path / "again")
    assert "again" not in left(tmp_path)


# ---- In other processes --------------------------------------------------------------------------


def surroundings(hub, place):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        clean.pop(name, None), clean.pop(name.upper(), None)
    return clean | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(place),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
def test_a_push_that_was_killed_leaves_the_remote_and_the_next_one_works(hub, model, tmp_path):
    hub.make("ada/victor")
    before = hub.state()
    hub.stall.clear()  # uploads of large files begin, and do not end
    words = [sys.executable, "-m", "victorctl", "push", str(model), "ada/victor"]
    words += ["--set", "push.license=mit", "--json"]
    env = surroundings(hub, tmp_path / "hf")
    pause = threading.Event()  # never set; the library's own waiting is switched off
    with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as pushing:
        while not any(line.startswith("PUT") for line in hub.asked):
            assert pushing.poll() is None
            pause.wait(0.05)
        pushing.send_signal(signal.SIGKILL)
    hub.stall.set()
    assert hub.state() == before

    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)

    result = json.loads(done.stdout)
    assert result["schema"] == "victorctl/push/1"
    assert result["commit"] == hub.repos["ada/victor"].branches["main"]
    assert TOKEN not in done.stdout + done.stderr


STOCK = """
import sys
sys.path = [path for path in sys.path if path != ""]
import importlib.util
import torch
from transformers import AutoModelForImageTextToText
assert "victorctl" not in sys.modules
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "victorctl":
            raise ImportError("there is no victorctl here")
sys.meta_path.insert(0, Hide())
"""


@pytest.mark.slow
def test_the_page_works_where_there_is_no_victorctl_and_answers_as_before(hub, model, tmp_path):
    card = publishing.run(model)["card"]
    victor, base = (block.split("```")[0] for block in card.split("```python\n")[1:])
    work = tmp_path / "work"
    work.mkdir()
    local = f"""
from PIL import Image
from transformers import AutoProcessor
from victorctl import load
model, processor = load({str(model)!r}), AutoProcessor.from_pretrained({str(model)!r})
{victor[victor.index("question =") :]}
"""
    env = surroundings(hub, tmp_path / "hf")

    def answer(code):
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=work, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    theirs = answer(STOCK + victor + base + "\nprint(type(model).__name__, type(base).__name__)")

    assert theirs.splitlines()[-1] == "VictorLlava LlavaForConditionalGeneration"
    assert theirs.splitlines()[:-1] == answer(local).splitlines()
