"""What is said where a processor needs a package that is not here."""

import json
import tomllib
from pathlib import Path

import pytest
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available

from tests.processors import PROCESSORS, tiny_family
from tests.tiny import tiny_tokenizer
from victorctl import checkpoint
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe

ROOT = Path(__file__).parents[1]
NEEDS_TORCHVISION = {  # a processor, one of videos, and one of pictures
    "mistral3": {"processor_class": "PixtralProcessor"},
    "llava_onevision": {
        "processor_class": "LlavaOnevisionProcessor",
        "image_processor": {"image_processor_type": "LlavaOnevisionImageProcessor"},
        "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor"},
    },
    "cohere2_vision": {
        "processor_class": "Cohere2VisionProcessor",
        "image_processor": {"image_processor_type": "Cohere2VisionImageProcessor"},
    },
}


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here")
@pytest.mark.parametrize("family", NEEDS_TORCHVISION)
def test_a_processor_without_torchvision_says_what_brings_it(tmp_path, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "processor_config.json").write_text(json.dumps(NEEDS_TORCHVISION[family]))
    tiny_tokenizer().save_pretrained(tmp_path)

    with pytest.raises(VictorError) as raised:
        checkpoint.load_processor(tmp_path)

    assert raised.value.problem == f"{tmp_path}: its processor needs torchvision, which is not here"
    assert raised.value.fix == "pip install 'victorctl[video]', which brings it"


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here")
def test_convert_says_so_before_it_writes_anything(tmp_path):
    source = tmp_path / "source"
    tiny_family("video_llava").save_pretrained(source)
    parts = {"image_processor": {"image_processor_type": "VideoLlavaImageProcessor"}}
    parts["video_processor"] = {"video_processor_type": "VideoLlavaVideoProcessor"}
    (source / "processor_config.json").write_text(
        json.dumps({"processor_class": "VideoLlavaProcessor", **parts})
    )
    tiny_tokenizer().save_pretrained(source)
    recipe = load_recipe(flags={"convert.verify": "none", "victor.init": "embeddings"})

    with pytest.raises(VictorError, match="its processor needs torchvision, which is not here"):
        convert(str(source), recipe=recipe, run=Run(out=tmp_path / "victor", quiet=True))
    assert not (tmp_path / "victor").exists()


def test_smolvlms_processor_without_num2words_says_what_brings_it(tmp_path, monkeypatch):
    PROCESSORS["smolvlm"]().save_pretrained(tmp_path)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)

    with pytest.raises(VictorError) as raised:
        checkpoint.load_processor(tmp_path)

    assert raised.value.problem == f"{tmp_path}: its processor needs num2words, which is not here"
    assert raised.value.fix == "pip install 'victorctl[video]', which brings it"


def test_a_processor_that_needs_yet_another_package_says_what_transformers_says(
    tmp_path, monkeypatch
):
    def load(*_args, **_options):
        raise ImportError("\nXProcessor requires the xyz library")

    monkeypatch.setattr(checkpoint.AutoProcessor, "from_pretrained", load)
    with pytest.raises(VictorError, match=r"not here \(XProcessor requires the xyz library\)"):
        checkpoint.load_processor(tmp_path)


def test_what_brings_packages_that_processors_need_is_an_extra_of_ours():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert set(checkpoint.PACKAGES) == set(project["optional-dependencies"]["video"])
