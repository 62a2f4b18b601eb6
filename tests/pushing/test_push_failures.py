"""Whatever goes wrong in a push is a sentence, and leaves the remote as it was."""

import re
import time

import pytest
from huggingface_hub import constants

from tests.keeping import TOKEN, Fault, Keeping
from tests.publishing import run
from victorctl import hub as the_hub
from victorctl.errors import VictorError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # their own


def test_files_that_the_hub_leaves_out_are_noticed(hub, model, monkeypatch):
    hub.make("ada/victor")
    monkeypatch.setattr("tests.keeping.IGNORED", "victor.safetensors")
    with pytest.raises(VictorError, match="the Hub took the commit, and does not hold all files"):
        run(model)


@pytest.mark.parametrize("status", [401, 404, 503])
def test_what_xet_says_is_a_sentence_too(hub, model, monkeypatch, status):
    def refuse(*_given, **_named):
        raise ConnectionError(f"Network error: HTTP status client error ({status} x) for url")

    hub.make("ada/victor")
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", refuse)
    with pytest.raises(VictorError, match=f"ada/victor: {SENTENCES[status]}"):
        run(model)


def test_a_page_that_the_hub_does_not_take_is_a_sentence(hub, model):
    hub.make("ada/victor")
    hub.faults = [Fault("POST /api/validate-yaml", 400, message="license: foo")]
    with pytest.raises(VictorError, match="ada/victor: the Hub does not take this"):
        run(model)


def test_a_lost_answer_does_not_open_two_pull_requests(hub, model):
    repo = hub.make("ada/victor")
    hub.faults = [Fault("POST .*/commit/", 504, times=1, late=True)]
    with pytest.raises(VictorError, match="the Hub is in trouble"):
        run(model, pr=True)
    assert repo.pulls == 1


def test_as_long_as_the_hub_asks_for_is_waited(hub, model, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    hub.make("ada/victor")
    hub.faults = [Fault(ROUTES["look"], 429, times=1, headers={"Retry-After": "17"})]
    run(model)
    assert waited[0] == 17.0


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
    401: "the Hub does not know you .*\n  fix: hf auth login, or mend HF_TOKEN",
    403: "your token may not write there .*\n  fix: use one that may: https",
    404: "no such repository, or none that you may see .*\n  fix: check the name, or: hf auth",
    409: "somebody else changed it meanwhile .*\n  fix: run the command again",
    413: "more than the Hub takes .*\n  fix: free some storage",
    429: "too many requests .*\n  fix: wait some minutes, then run the command again",
    503: "the Hub is in trouble .*\n  fix: run the command again later",
    507: "your storage is full .*\n  fix: free some",
}


CASES = [
    pytest.param(route, status, marks=[] if status == 403 else [pytest.mark.slow])
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
