"""From the Hub and back: a folder is pushed whole, and what is saved belongs to no repository.

Faults planted and caught: the file not copied; half a folder pushed.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText, dynamic_module_utils
from transformers.utils import hub as transformers_hub

from tests import hub
from tests.victor_models import digests, victor_folder, victor_llava
from victorctl.modeling_victor import VictorLlava


def test_registering_the_class_for_auto_changes_nothing_in_the_folder(
    folder, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(VictorLlava, "_auto_class", None)
    VictorLlava.register_for_auto_class("AutoModelForImageTextToText")

    victor_folder(tmp_path, copy.deepcopy(model))

    assert digests(tmp_path) == digests(folder)


def test_a_model_from_the_hub_is_saved_as_a_folder_of_its_own(folder, tmp_path, monkeypatch):
    # From the Hub its code is "someone/victor--modeling_victor.VictorLlava".
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with hub.serving(monkeypatch, tmp_path / "hub", {"someone/victor": folder}):
        loaded = AutoModelForImageTextToText.from_pretrained(
            "someone/victor", trust_remote_code=True
        )

        victor_folder(tmp_path / "saved", loaded)

    assert digests(tmp_path / "saved") == digests(folder)


def test_pushing_uploads_the_whole_folder(folder, monkeypatch):
    uploaded = {}
    api = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(transformers_hub, "hf_api", lambda: api)
    monkeypatch.setattr(
        transformers_hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n")
    )
    monkeypatch.setattr(
        VictorLlava,
        "_upload_modified_files",
        lambda _, made, *__, **___: uploaded.update(digests(Path(made))),
    )

    VictorLlava.from_pretrained(folder).push_to_hub("someone/victor")

    kept = digests(folder)
    assert uploaded.pop("README.md")
    assert uploaded.items() <= kept.items()
    assert kept.keys() - uploaded.keys() == {  # the processor pushes itself
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_saving_does_not_push_half_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"without its registers.\n  fix: .*hf upload"):
        victor_llava().save_pretrained(tmp_path, push_to_hub=True)

    assert not list(tmp_path.iterdir())
