"""Every text model that is said to be tested obeys every law; every other is refused by name.

Two of them are tried at once, which between them have windows in all and in some layers, capped
scores, scaled and tied embeddings, and experts; the others, too, where slow tests run.
"""

import pytest
from transformers import CONFIG_MAPPING, LlavaConfig

from tests import backbones
from tests.converting import QUICK, left, run
from tests.modeling import laws
from victorctl.__main__ import main
from victorctl.errors import VictorError
from victorctl.families import BACKBONES

AT_ONCE = ("gemma2", "mixtral")
SLOW = [pytest.param(text, marks=pytest.mark.slow) for text in backbones.SETTINGS]
TEXTS = [
    text if text in AT_ONCE else slow for text, slow in zip(backbones.SETTINGS, SLOW, strict=True)
]
REFUSED = [known for known in BACKBONES if known.refused]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make and load a text model's case; the last is kept."""
    return laws.keep_last(lambda text: backbones.make(tmp_path_factory.mktemp(text), text))


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("text", TEXTS)
def test_it_holds_that(made, text, law):
    law(made(text))


def test_the_text_models_that_are_said_to_be_tested_are_those():
    said = [known.model_type for known in BACKBONES if not known.refused]
    assert said == list(backbones.SETTINGS)


@pytest.mark.parametrize("known", REFUSED, ids=lambda known: known.model_type)
@pytest.mark.parametrize("dry_run", [True, False], ids=["dry", "whole"])
def test_a_text_model_that_cannot_be_cut_is_refused_before_its_weights_are_read(
    tmp_path, known, dry_run
):
    text = CONFIG_MAPPING[known.model_type]()
    LlavaConfig(text_config=text).save_pretrained(tmp_path / "llava")
    sentence = (
        rf"llava: its text model, {known.model_type}, cannot be run in slices: {known.remarks}\n"
        "  fix: use a model with another text model, such as Llama"
    )

    with pytest.raises(VictorError, match=sentence):
        run(tmp_path / "llava", tmp_path / "out", flags=QUICK, dry_run=dry_run)

    assert left(tmp_path) == ["llava"]


def test_the_command_says_so_and_fails(tmp_path, monkeypatch, capsys):
    LlavaConfig(text_config=CONFIG_MAPPING["granite"]()).save_pretrained(tmp_path / "llava")
    words = ["victorctl", "convert", str(tmp_path / "llava"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)

    with pytest.raises(SystemExit) as stop:
        main()

    assert stop.value.code == 1
    assert "its text model, granite, cannot be run in slices" in capsys.readouterr().err
    assert left(tmp_path) == ["llava"]
