import getpass
import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from victorctl import doctor
from victorctl.errors import CheckFailed

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found():
    return {row["check"]: row for row in doctor.diagnose()["checks"]}


def test_looks_at_everything_a_support_person_asks_for(found):
    assert {
        "victorctl", "python", "platform", "memory", "torch", "transformers", "cpu", "attention",
        "modeling_victor.py", "recipes", "disk here", "disk of the hub's cache", "hub endpoint",
        "hub", "hub token",
    } <= set(found)  # fmt: skip
    assert all(row["state"] == "ok" or row["fix"] for row in found.values())


def test_shows_no_user_no_path_and_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    rows = doctor.diagnose()["checks"]
    shown = json.dumps([row["found"] for row in rows])

    assert next(row for row in rows if row["check"] == "hub token")["found"] == "present"
    for private in ("hf_secret", str(Path.home()), f"/{getpass.getuser()}", str(tmp_path)):
        assert private not in shown


def test_knows_the_same_packages_and_ranges_as_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [name + range_ for name, range_ in doctor.NEEDED.items()]


@pytest.mark.parametrize(
    ("version", "state"),
    [("5.22.9", "fail"), ("5.23.0", "ok"), ("5.99.0.dev0", "ok"), ("6.0.0", "fail")],
)
def test_a_version_outside_its_range_fails_with_the_command_that_mends_it(
    monkeypatch, version, state
):
    real = metadata.version
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: version if name == "transformers" else real(name)
    )
    row = next(check for check in doctor._packages() if check.check == "transformers")

    assert (row.state, row.found) == (state, version)
    assert row.fix == ("" if state == "ok" else "pip install 'transformers>=5.23,<6'")


def test_a_missing_package_fails_and_what_needs_it_is_left_out(monkeypatch):
    def version(name):
        if name in ("torch", "huggingface_hub"):
            raise metadata.PackageNotFoundError(name)
        return "5.23"

    monkeypatch.setattr(doctor.metadata, "version", version)
    result = doctor.diagnose()
    states = {row["check"]: (row["state"], row["found"]) for row in result["checks"]}

    assert states["torch"] == ("fail", "not installed")
    assert not {"cpu", "attention", "modeling_victor.py", "hub"} & set(states)
    with pytest.raises(
        CheckFailed, match=r"2 failed: torch, hugg.*\n  fix: pip install 'torch>=2\.6'"
    ):
        doctor.demand(result)


def test_warnings_do_not_fail():
    doctor.demand({"checks": [{"check": "gpu", "state": "warn", "fix": "buy one"}]})


@pytest.mark.parametrize(
    ("url", "state", "shown"),
    [
        ("https://huggingface.co", "ok", "https://huggingface.co"),
        ("https://me:secret@mirror.example/x", "ok", "https://mirror.example"),
        ("http://127.0.0.1:8000", "ok", "http://127.0.0.1"),
        ("http://localhost:8000", "ok", "http://localhost"),
        ("http://mirror.example", "warn", "http://mirror.example: not encrypted"),
    ],
)
def test_an_endpoint_is_shown_without_credentials_and_ought_to_be_encrypted(url, state, shown):
    check = doctor._endpoint(url)
    assert (check.state, check.found) == (state, shown)


@pytest.mark.parametrize(("free", "state"), [(4_999_999_999, "warn"), (5_000_000_000, "ok")])
def test_little_disk_is_a_warning_also_where_the_folder_is_yet_to_be_made(
    monkeypatch, tmp_path, free, state
):
    def usage(path):
        assert path == tmp_path
        return doctor.shutil._ntuple_diskusage(10**12, 0, free)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    check = doctor._disk("disk", tmp_path / "not" / "yet")
    assert (check.state, check.found) == (state, "4.66 GiB free")


def test_no_recipes_is_a_failure(monkeypatch):
    monkeypatch.setattr(doctor.recipes, "names", dict)
    assert doctor._recipes().state == "fail"
