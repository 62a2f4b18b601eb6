"""A push sends one commit of what is fit to be published, and nothing else."""

import hashlib
import json

import pytest
from huggingface_hub import constants

from tests.keeping import Fault
from tests.publishing import run
from victorctl import lineage
from victorctl.errors import VictorError
from victorctl.push import after

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # their own


def test_a_push_makes_the_repository_with_one_commit_of_all_files(hub, model):
    found = run(model)

    files = hub.files("ada/victor")
    assert hub.repos["ada/victor"].messages == ["first", "Victor model, by victorctl"]
    assert files.keys() - {".gitattributes"} == {file["path"] for file in found["files"]}
    for file in found["files"]:
        content = files[file["path"]]
        assert (file["bytes"], file["sha256"]) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
        assert file["change"] == "new"
    for name in ("model.safetensors", "victor.safetensors", "modeling_victor.py", "config.json"):
        assert files[name] == (model / name).read_bytes()
    assert found["commit"] == hub.repos["ada/victor"].branches["main"]
    assert found["url"] == f"{hub.url}/ada/victor"


def test_the_same_again_sends_nothing(hub, model):
    run(model)
    before, hub.asked[:] = hub.state(), []

    found = run(model)

    assert found["commit"] is None
    assert {file["change"] for file in found["files"]} == {"same"}
    assert {line.split()[0] for line in hub.asked} <= {"GET", "HEAD"}
    assert hub.state() == before


def test_only_what_changed_is_sent(hub, model):
    run(model)
    (model / "generation_config.json").write_text('{"max_new_tokens": 5}\n')
    sent = hub.got

    found = run(model, message="Shorter answers")

    changed = [file["path"] for file in found["files"] if file["change"] != "same"]
    assert changed == ["generation_config.json"]
    assert hub.got == sent
    assert hub.files("ada/victor")["generation_config.json"] == b'{"max_new_tokens": 5}\n'
    assert hub.repos["ada/victor"].messages[-1] == "Shorter answers"


def test_a_dry_run_shows_everything_and_sends_nothing(hub, model):
    hub.make("ada/victor", {"config.json": (model / "config.json").read_bytes(), "LICENSE": b"x"})
    before = hub.state()

    found = run(model, dry_run=True)

    change = {file["path"]: file["change"] for file in found["files"]}
    assert (change["config.json"], change["victor.safetensors"]) == ("same", "new")
    assert found["endpoint"] == hub.url
    assert found["card"].startswith("---\n")
    assert json.loads(found["victor_json"]) == lineage.read_lineage(model)
    assert {line.split()[0] for line in hub.asked} <= {"GET", "HEAD"}
    assert hub.state() == before
    assert "commit" not in found


def test_a_dry_run_needs_no_hub(hub, model, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    found = run(model, dry_run=True)

    assert {file["change"] for file in found["files"]} == {"unknown"}
    assert (
        "warning: what is there is not known: ada/victor: HF_HUB_OFFLINE" in capsys.readouterr()[1]
    )


def test_a_name_alone_is_ones_own(hub, model):
    assert run(model, "victor")["repo"] == "ada/victor"
    assert "ada/victor" in hub.repos


def test_a_pull_request_leaves_the_main_branch_alone(hub, model):
    hub.make("ada/victor")
    before = hub.state()

    found = run(model, pr=True)

    assert found["url"] == f"{hub.url}/ada/victor/discussions/1"
    assert hub.state()["ada/victor"]["main"] == before["ada/victor"]["main"]
    assert "victor.safetensors" in hub.files("ada/victor", "refs/pr/1")


def test_a_branch_is_made_and_goes_again_if_nothing_comes_of_it(hub, model):
    hub.make("ada/victor")
    before = hub.state()
    hub.faults = [Fault("POST .*/commit/", 403, times=1)]
    with pytest.raises(VictorError, match="ada/victor: your token may not write there"):
        run(model, revision="trial")
    assert hub.state() == before

    run(model, revision="trial")

    assert hub.state()["ada/victor"]["main"] == before["ada/victor"]["main"]
    assert "victor.safetensors" in hub.files("ada/victor", "trial")
    assert run(model, revision="trial")["commit"] is None


def test_a_new_branch_of_what_is_there_is_made(hub, model):
    run(model)
    commits = len(hub.repos["ada/victor"].commits)

    found = run(model, revision="trial")

    assert hub.state()["ada/victor"]["trial"] == hub.state()["ada/victor"]["main"]
    assert found["url"].endswith("/ada/victor/tree/trial")
    assert len(hub.repos["ada/victor"].commits) == commits
    assert run(model, revision="trial")["commit"] is None


def test_data_are_named_as_on_the_hub(hub, model):
    assert "- ada/cats\n" in run(model, dataset="ada/cats")["card"]
    with pytest.raises(VictorError, match=r"--set push.dataset=cats: no name of a dataset"):
        run(model, dataset="cats")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, []),
        ({"revision": "trial"}, ["--revision", "trial"]),
        ({"pr": True}, ["--revision", "refs/pr/1"]),
    ],
)
def test_what_was_published_is_what_the_next_command_fetches(hub, model, how, words):
    hub.make("ada/victor")
    found = after(run(model, **how))
    assert found == ["pull", "ada/victor", "--out", "FOLDER", *words]


def test_a_pull_request_and_a_branch_exclude_each_other(hub, model):
    with pytest.raises(VictorError, match="--pr --revision: a pull request has a branch of its"):
        run(model, pr=True, revision="trial")


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_is_as_private_as_was_asked(hub, model, private):
    run(model, private=private)
    assert hub.repos["ada/victor"].private is private


def test_what_is_public_is_not_made_private_in_silence(hub, model):
    hub.make("ada/victor")
    with pytest.raises(VictorError, match="--private: ada/victor is public already"):
        run(model, private=True)
    assert len(hub.repos["ada/victor"].commits) == 1


def test_weights_of_another_model_go_and_what_is_the_users_own_stays(hub, model):
    old = ["model-00001-of-00002.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]
    hub.make("ada/victor", dict.fromkeys([*old, "notes.md", "assets/a.png"], b"old"))

    found = run(model)

    assert found["removed"] == old[:2]
    files = hub.files("ada/victor")
    assert not files.keys() & set(old[:2])
    assert files["model.safetensors.index.json"] == (model / old[2]).read_bytes()
    assert (files["notes.md"], files["assets/a.png"]) == (b"old", b"old")


def test_ones_own_text_and_metadata_survive(hub, model):
    run(model)
    repo = hub.repos["ada/victor"]
    card = hub.files("ada/victor")["README.md"].decode()
    card = card.replace("pipeline_tag:", "thumbnail: cat.png\npipeline_tag:", 1)
    card = card.replace("- victor\n", "- victor\n- cats\n", 1)
    card = card.replace("<!-- written by victorctl", "Hello, cats.\n\n<!-- written by victorctl", 1)
    card = card.replace("# victor\n", "# changed\n", 1) + "\nGoodbye.\n"
    edited = hub.files("ada/victor") | {"README.md": card.encode()}
    repo.branches["main"] = repo.commit(edited, "by hand")

    run(model)

    again = hub.files("ada/victor")["README.md"].decode()
    assert "thumbnail: cat.png\n" in again
    assert "- cats\n" in again
    assert again.index("Hello, cats.") < again.index("# victor\n") < again.index("Goodbye.")
    assert "# changed" not in again
    assert run(model)["commit"] is None


MARKS = "{}\n<!-- written by victorctl: text above and below these two lines is yours and stays -->"
MARKS += "\nold\n<!-- end of what victorctl wrote -->\n"


@pytest.mark.parametrize(
    ("here", "there", "kept"),
    [("Here.", "", "Here."), ("", "There.", "There."), ("A.", "A.", "A.")],
)
def test_text_of_ones_own_is_taken_from_where_it_is(hub, model, here, there, kept):
    hub.make("ada/victor", {"README.md": MARKS.format(there).encode()})
    (model / "README.md").write_text(MARKS.format(here))
    assert f"---\n\n{kept}\n\n<!-- written" in run(model)["card"]


def test_two_texts_of_ones_own_are_not_chosen_between(hub, model):
    hub.make("ada/victor", {"README.md": b"On the Hub."})
    (model / "README.md").write_text("In the folder.")
    with pytest.raises(VictorError, match=r"README.md: your text there is not that on the Hub"):
        run(model)


def test_a_page_may_hold_no_token_and_is_looked_at_for_paths(hub, model, capsys):
    (model / "README.md").write_text(f"hf_{'a1B2' * 9}")
    with pytest.raises(VictorError, match=r"README.md: holds what looks like a token"):
        run(model)
    (model / "README.md").write_text("Made in /home/ada/work/x.")
    run(model)
    assert "your own text names a path of this machine" in capsys.readouterr().err


def test_pushed_twice_by_the_bases_licence_nothing_is_sent_the_second_time(hub, model):
    base = hub.make("llava-hf/llava", {"README.md": b"---\nlicense: gemma\n---\n"})
    record = json.loads((model / "victor.json").read_text())
    source = {"name": "llava-hf/llava", "commit": base.branches["main"]}
    record["stages"][0]["source"] = source
    (model / "victor.json").write_text(json.dumps(record))

    assert run(model, license=None)["license"] == "gemma"
    assert run(model, license=None)["commit"] is None


def test_a_licence_that_was_told_once_is_on_the_page_from_then_on(hub, model):
    card = run(model, license="mit")["card"]
    assert "`mit`, as the publisher states" in card

    again = run(model, license=None)

    assert (again["card"], again["commit"]) == (card, None)


def test_a_branch_of_a_new_repository_is_made(hub, model):
    run(model, revision="trial")
    assert "victor.safetensors" in hub.files("ada/victor", "trial")
    assert "victor.safetensors" not in hub.files("ada/victor")


def test_folders_of_the_users_own_stay_and_what_would_be_loaded_unasked_goes(hub, model):
    own = ["lora/adapter_model.safetensors", "onnx/model.safetensors", "LICENSE"]
    gone = ["adapter_config.json", "custom_generate/generate.py", "preprocessor_config.json"]
    hub.make("ada/victor", dict.fromkeys([*own, *gone, "old.safetensors"], b"x"))

    found = run(model)

    assert found["removed"] == sorted([*gone, "old.safetensors"])
    assert hub.files("ada/victor").keys() >= set(own)
