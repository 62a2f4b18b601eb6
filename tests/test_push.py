"""A push sends one commit of what is fit to be published, and nothing else."""

import hashlib
import json
import re
import time

import pytest
from huggingface_hub import constants

from tests import publishing
from tests.hub import aim
from tests.keeping import TOKEN, Fault, Keeping
from tests.publishing import run
from victorctl import hub as the_hub
from victorctl import lineage
from victorctl.errors import VictorError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # their own


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the library waits too
    with Keeping() as keeping:
        aim(monkeypatch, tmp_path / "cache", keeping.url)
        yield keeping


@pytest.fixture
def model(tmp_path):
    return publishing.trained(tmp_path)


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


def test_a_page_in_the_folder_beats_that_on_the_hub(hub, model):
    hub.make("ada/victor", {"README.md": b"On the Hub."})
    (model / "README.md").write_text("In the folder.")

    card = run(model)["card"]

    assert "In the folder." in card
    assert "On the Hub." not in card


# ---- What goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["http://hub.example.org", "http://127.0.0.1.example.org", "ftp://localhost", "hub"]
)
def test_nothing_is_sent_where_it_could_be_read_on_the_way(hub, model, monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(VictorError, match=f"HF_ENDPOINT {address}: what is sent there, your token"):
        run(model)
    assert hub.asked == []


@pytest.mark.parametrize(
    "repo", ["a/b/c", "ada/vic tor", "ada/-victor", "ada/victor.git", "a--b/c"]
)
def test_a_name_that_the_hub_does_not_allow_is_refused(hub, model, repo):
    with pytest.raises(VictorError, match=f"{repo}: no name of a repository on the Hub\n  fix: wr"):
        run(model, repo)
    assert hub.asked == []


ROUTES = {
    "who": "GET /api/whoami-v2",
    "look": "GET /api/models/ada/victor$",
    "tree": "GET .*/tree/",
    "create": "POST /api/repos/create",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /_lfs/",
    "commit": "POST .*/commit/",
}
SENTENCES = {
    401: "the Hub does not know you .*\n  fix: hf auth login",
    403: "your token may not write there .*\n  fix: use one that may: https",
    404: "no such repository, or none that you may see .*\n  fix: check the name, or: hf auth",
    409: "somebody else changed it meanwhile .*\n  fix: run the command again",
    413: "more than the Hub takes .*\n  fix: free some storage",
    429: "too many requests .*\n  fix: wait some minutes, then run the command again",
    503: "the Hub is in trouble .*\n  fix: run the command again later",
    507: "your storage is full .*\n  fix: free some",
}


CASES = [
    pytest.param(route, status, marks=[] if status in (403, 503) else [pytest.mark.slow])
    for route in ROUTES
    for status in SENTENCES
    # what the Hub says of a repository that does not exist, or exists already, is no refusal
    if (route, status) not in {("look", 404), ("tree", 404), ("create", 409)}
]


@pytest.mark.parametrize(("route", "status"), CASES)
def test_every_refusal_is_a_sentence_and_leaves_the_remote_as_it_was(hub, model, route, status):
    if route != "create":
        hub.make("ada/victor", {"old.txt": b"old"})
    before = hub.state()
    hub.faults = [Fault(ROUTES[route], status)]
    with pytest.raises(VictorError, match=rf"victor: {SENTENCES[status]}"):
        run(model, "victor")

    assert hub.state() == before
    tried = sum(bool(re.search(ROUTES[route], line)) for line in hub.asked)
    assert tried >= (the_hub.TRIES if status in the_hub.LATER else 1)


def test_a_full_storage_is_named_whatever_its_status(hub, model):
    hub.make("ada/victor")
    said = "You have exceeded your private storage quota."
    hub.faults = [Fault(ROUTES["batch"], 403, message=said)]
    with pytest.raises(VictorError, match=rf"your storage is full \(403: {said}\)\n  fix: free"):
        run(model)


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "create"])
def test_what_passes_is_tried_again_until_it_went_well(hub, model, route, capsys):
    hub.make("ada/victor")
    hub.faults = [Fault(ROUTES[route], 503, times=2)]

    run(model, "victor")

    assert "victor.safetensors" in hub.files("ada/victor")
    assert len(hub.repos["ada/victor"].commits) == 2


def test_a_commit_that_went_through_though_the_answer_was_lost_is_not_made_twice(hub, model):
    hub.make("ada/victor")
    hub.faults = [Fault("POST .*/commit/", 504, times=1, late=True)]

    found = run(model)

    assert found["commit"] == hub.repos["ada/victor"].branches["main"]
    assert len(hub.repos["ada/victor"].commits) == 2


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(hub, model, monkeypatch):
    repo = hub.make("ada/victor")
    whole = Keeping.fault

    def meanwhile(self, method, path):
        if "/preupload/" in path and len(repo.commits) == 1:
            repo.branches["main"] = repo.commit({"theirs.txt": b"theirs"}, "theirs")
        return whole(self, method, path)

    monkeypatch.setattr(Keeping, "fault", meanwhile)
    with pytest.raises(VictorError, match="somebody else changed it meanwhile"):
        run(model)
    assert hub.files("ada/victor") == {"theirs.txt": b"theirs"}


def test_an_interrupted_upload_goes_on_where_it_ended(hub, model):
    hub.make("ada/victor")
    before = hub.state()
    hub.faults = [Fault("PUT /_lfs/", 403, after=1)]
    with pytest.raises(VictorError, match="may not write"):
        run(model)
    assert (hub.state(), len(hub.blobs)) == (before, 1)
    hub.faults, sent = [], set(hub.blobs)
    hub.asked.clear()

    run(model)

    uploads = {line.rpartition("/")[2] for line in hub.asked if line.startswith("PUT")}
    assert uploads
    assert not uploads & sent


def test_a_hub_that_does_not_answer_is_a_sentence(hub, model, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(VictorError, match=r"the Hub at http://127.0.0.1:9 does not answer \(Conne"):
        run(model)


def test_without_a_token_one_is_told_to_log_in(hub, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    for repo in ("victor", "ada/victor"):
        with pytest.raises(VictorError, match="\n  fix: hf auth login"):
            run(model, repo)
    assert hub.repos == {}


def test_the_token_is_shown_and_written_nowhere(hub, model, capfd):
    found = run(model)

    assert TOKEN not in str(found)
    assert TOKEN not in "".join(capfd.readouterr())
    for content in hub.files("ada/victor").values():
        assert TOKEN.encode() not in content
    for file in model.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes()
