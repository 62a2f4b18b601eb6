"""An adapter that holds less than it says is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import originals
from tests.converting import refused
from tests.loras import write_base, write_lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # of peft


def _adapter(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"r": 3}, "lora_A.weight has rank 4, and adapter_config.json says 3"),
        ({"r": 0}, "lora_A.weight has rank 4, and adapter_config.json says 0"),
        ({"lora_alpha": "256"}, "lora_alpha '256' is no number"),
    ],
)
def test_an_adapter_and_its_settings_belong_together(tmp_path, settings, sentence):
    base = write_base(tmp_path / "vicuna", originals.native())
    write_lora(tmp_path / "llava-lora", originals.native(), base)
    _adapter(tmp_path / "llava-lora", **settings)
    tower = originals.write_tower(tmp_path / "clip", originals.native())
    refused(tmp_path / "llava-lora", sentence, **{"convert.vision_tower": str(tower)})


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_that_holds_nothing_is_refused(tmp_path, whole):
    base = write_base(tmp_path / "vicuna", originals.native())
    write_lora(tmp_path / "llava-lora", originals.native(), base)
    file = tmp_path / "llava-lora" / "adapter_model.safetensors"
    empty = {} if whole else {name: torch.empty(0) for name in load_file(file)}
    save_file(empty, file)
    tower = originals.write_tower(tmp_path / "clip", originals.native())
    sentence = "saved without gathering its parts"
    refused(tmp_path / "llava-lora", sentence, **{"convert.vision_tower": str(tower)})
