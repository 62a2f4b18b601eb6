"""The page of a model says what it is, what was measured, and what was not."""

import json

import pytest
from huggingface_hub import ModelCard

from tests import publishing
from tests.hub import aim
from tests.keeping import Keeping
from victorctl.card import metadata_of, write_card
from victorctl.errors import VictorError
from victorctl.licence import Licence, find_licence
from victorctl.release import prepare

TERMS = Licence("llama2", found="you")
SHA = "c0ffee" + 34 * "0"


@pytest.fixture
def model(tmp_path):
    return publishing.trained(tmp_path)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def from_hub(model):
    """Let a model's base be on the Hub."""

    def change(record):
        record["stages"][0]["source"] = {"name": "llava-hf/llava", "commit": SHA}

    edit(model / "victor.json", change)


def measured(model, **more):
    """Let a report say that something was kept."""
    shown = {"accuracy": {"model": 0.75, "base": 0.8}, "kept": 0.9375, "interval": [0.9, 0.97]}
    shown["by_type"] = {}
    shown["baselines"] = {"pool": {"accuracy": 0.6, "kept": 0.75, "mean_visual_tokens": 9.0}}
    edit(model / "eval" / "report.json", lambda report: report.update(shown | more))


def card(model, own="", licence=TERMS, dataset=None, **how):
    made = prepare(model, quiet=True, **how)
    return write_card(made, "ada/victor-cats", licence, own, dataset)


def test_its_metadata_are_what_the_hub_reads(model):
    from_hub(model)
    measured(model)

    data = ModelCard(card(model, dataset="ada/cats")).data

    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert (data.base_model, data.base_model_relation) == ("llava-hf/llava", "finetune")
    assert (data.license, data.datasets) == ("llama2", ["ada/cats"])
    assert {"victor", "custom_code"} <= set(data.tags)
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert (data.model_name, found) == (
        "victor-cats",
        {"accuracy": 75.0, "accuracy kept": 93.75},
    )
    assert {result.dataset_name for result in data.eval_results} == {"data.json"}


def test_it_names_no_path_of_this_machine(model):
    measured(model)
    file = model / "eval" / "report.json"
    edit(file, lambda report: report["settings"].update(command="eval m --data /home/ada/c.json"))
    edit(
        model / "victor.json",
        lambda record: record["stages"][-1]["settings"]["data"].update(train="/home/ada/c.json"),
    )

    text = card(model)

    assert "/home" not in text
    assert "eval m --data c.json" in text
    assert "| train | c.json |" in text


def test_a_base_and_data_that_are_not_on_the_hub_are_not_linked(model):
    data = ModelCard(card(model)).data.to_dict()
    assert not data.keys() & {"base_model", "base_model_relation", "datasets"}


def test_it_says_what_was_measured_how_and_of_which_weights(model):
    measured(model)
    report = json.loads((model / "eval" / "report.json").read_text())

    text = card(model)

    assert "Victor with 3 registers keeps **93.8 %** of its base's accuracy" in text
    assert "| all | 4 | 80.0 % | 75.0 % | 93.8 % |" in text
    assert "| pool | 9 | 60.0 % | 75.0 % |" in text
    assert report["settings"]["command"] in text
    assert report["weights_sha256"] in text
    assert "![Accuracy kept against mean visual tokens per layer](tradeoff.png)" in text
    assert "| rung | register-lora |" in text
    assert "| steps | 1 |" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "4 questions of data.json were asked; what it keeps on others"),
        ({}, "No speed was measured."),
        ({"baselines": {}}, "It was not compared with simpler ways"),
        ({"omissions": ["The tower is not counted."]}, "* The tower is not counted."),
    ],
)
def test_it_says_what_was_not_measured(model, change, sentence):
    measured(model, **change)
    assert sentence in card(model).split("## Limits")[1]


def test_without_a_report_it_claims_nothing(model):
    (model / "eval" / "report.json").unlink()

    text = card(model)

    assert "## Results\n\nNothing was measured.\n" in text
    assert "model-index" not in text
    assert "tradeoff" not in text


def test_a_changed_base_and_missing_training_are_named(tmp_path):
    assert "were **changed**" in card(publishing.trained(tmp_path, "lora"))
    text = card(publishing.converted(tmp_path), untrained=True)
    assert "None: the registers are as they were drawn." in text
    assert "Its registers were never trained" in text
    assert "byte for byte" in text


def test_written_again_it_is_the_same(model):
    text = card(model)
    assert card(model, own=text) == text


def test_a_page_without_marks_stays_above(model):
    own = "---\nlicense: mit\ntags:\n- mine\nextra: 1\n---\n# Mine\n\nMy text.\n"

    text = card(model, own=own)

    data = metadata_of(text)
    assert (data["license"], data["extra"]) == ("llama2", 1)
    assert "mine" in data["tags"]
    assert text.index("My text.") < text.index("## Use")
    assert card(model, own=text) == text


def test_damaged_metadata_are_refused(model):
    with pytest.raises(VictorError, match=r"README.md: its metadata are not YAML"):
        card(model, own="---\na: [\n---\n")


# ---- Licences ------------------------------------------------------------------------------------

DEMO, HUB = {"name": "demo", "commit": None}, {"name": "llava-hf/llava", "commit": SHA}
LOCAL = {"name": "llava", "commit": None}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Keeping() as keeping:
        aim(monkeypatch, tmp_path / "cache", keeping.url)
        repo = keeping.make("llava-hf/llava", {"README.md": b"---\nlicense: gemma\n---\n"})
        repo.commits[SHA] = repo.commits[repo.branches["main"]]
        yield keeping


def test_the_licence_is_the_users_word_else_the_bases_else_the_pages(hub):
    page = {"license": "mit"}
    assert find_licence("llama2", page, HUB, "m").license == "llama2"
    assert find_licence(None, page, LOCAL, "m").license == "mit"
    assert find_licence(None, {"license": "gemma"}, HUB, "m").found == "llava-hf/llava"
    with pytest.raises(VictorError, match="its page says mit, and its base, llava-hf/llava, gemm"):
        find_licence(None, page, HUB, "m")
    assert find_licence(None, {"license": "unknown"}, HUB, "m") == Licence(
        "gemma", found="llava-hf/llava", of_base=True
    )
    assert find_licence(None, {}, DEMO, "m").license == "apache-2.0"


def test_a_licence_of_another_kind_keeps_its_name_and_link():
    page = {"license": "other", "license_name": "cats", "license_link": "https://example.org"}
    found = find_licence(None, page, LOCAL, "m")
    assert found.metadata() == page


def test_a_link_within_the_bases_repository_is_made_whole(hub):
    repo = hub.repos["llava-hf/llava"]
    page = b"---\nlicense: other\nlicense_name: cats\nlicense_link: LICENSE\n---\n"
    repo.commits[SHA] = {"README.md": page}
    found = find_licence(None, {}, HUB, "m")
    assert found.license_link == f"{hub.url}/llava-hf/llava/blob/{SHA}/LICENSE"


@pytest.mark.parametrize("given", [None, "mit"])
def test_nobodys_word_beats_a_base_that_allows_no_derivatives(hub, given):
    hub.repos["llava-hf/llava"].commits[SHA] = {"README.md": b"---\nlicense: cc-by-nd-4.0\n---\n"}
    with pytest.raises(VictorError, match="which allows nobody to publish derivatives"):
        find_licence(given, {"license": "mit"}, HUB, "m")


def test_a_base_that_is_gone_is_asked_about(hub):
    hub.repos.clear()
    with pytest.raises(VictorError, match=r"is not known\n  fix: add --set push.license=ID"):
        find_licence(None, {}, HUB, "m")


@pytest.mark.parametrize("origin", [{"name": "llava", "commit": None}, {}, HUB])
def test_a_licence_that_nobody_knows_is_asked_for(hub, origin):
    repo = hub.repos["llava-hf/llava"]
    repo.commits[SHA] = {"README.md": b""}
    with pytest.raises(VictorError, match=r"is not known\n  fix: add --set push.license=ID"):
        find_licence(None, {}, origin, "m")


def test_without_the_hub_a_licence_may_stay_unknown():
    assert find_licence(None, {}, HUB, "m", online=False).license == "unknown"
    assert find_licence(None, {}, DEMO, "m", online=False).license == "apache-2.0"


@pytest.mark.parametrize(
    "page",
    [
        {"license": "cc-by-nc-nd-4.0"},
        {"license": "cc-by-nd-4.0"},
        {"license": "other", "license_name": "research-no-derivatives"},
        {"license": "other", "license_name": "NoDerivatives 1.0"},
    ],
)
def test_a_licence_that_allows_no_derivatives_is_refused(page):
    with pytest.raises(VictorError, match="which allows nobody to publish derivatives"):
        find_licence(None, page, LOCAL, "m")


@pytest.mark.parametrize("name", ["cc-by-nc-4.0", "llama2", "mit", "cc-by-sa-4.0", "bsd-3-clause"])
def test_other_licences_are_passed_on(name):
    assert find_licence(None, {"license": name}, LOCAL, "m").license == name


# ---- One's own text ------------------------------------------------------------------------------


def test_what_was_measured_of_other_weights_goes_from_the_page(model):
    measured(model)
    old = card(model, dataset="ada/cats")
    (model / "eval" / "report.json").unlink()

    data = metadata_of(card(model, own=old, licence=Licence("mit")))

    assert not data.keys() & {"model-index", "datasets", "license_name"}
    assert data["license"] == "mit"


def test_a_page_whose_mark_is_gone_is_not_guessed_at(model):
    own = card(model).replace("<!-- end of what victorctl wrote -->", "")
    with pytest.raises(VictorError, match=r"is gone, so nobody knows where your text begins"):
        card(model, own=own)


def test_a_page_that_lost_both_marks_is_not_doubled(model):
    own = "\n".join(line for line in card(model).splitlines() if not line.startswith("<!--"))
    with pytest.raises(VictorError, match="is there without its two marks, and would be doubled"):
        card(model, own=own)


def test_terms_that_a_publisher_states_are_not_put_into_the_bases_mouth(model, capsys):
    found = find_licence("mit", {}, DEMO, "m")
    assert "warning: the base's own page says apache-2.0" in capsys.readouterr().err
    assert "`mit`, as the publisher states; the base is source." in card(model, licence=found)


def test_one_tag_is_a_tag(model):
    assert "cats" in metadata_of(card(model, own="---\ntags: cats\n---\n"))["tags"]
