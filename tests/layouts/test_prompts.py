"""Pictures and prompts reach a translated model as they reach the original.

Faults planted and caught: pad-to-square left out; no beginning of an answer; what the user says
learned.
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

from tests import originals
from tests.converting import QUICK, run
from tests.tiny import tiny_llava, tiny_picture
from victorctl.errors import VictorError
from victorctl.layouts import prompts
from victorctl.layouts.configs import target_of

WIDE = tiny_picture(1, (60, 30))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Convert a LLaVA 1.5 that pads."""
    folder = tmp_path_factory.mktemp("made")
    source = originals.write_original(folder / "llava", originals.native())
    return source, folder / "victor", run(source, folder / "victor")


# ---- Pictures ------------------------------------------------------------------------------------


def padded_square(picture):
    """Pad as the original does: centred, on the mean colour of CLIP's pictures."""
    mean = tuple(int(each * 255) for each in originals.CLIP_COLOURS["image_mean"])
    side = max(picture.size)
    square = Image.new("RGB", (side, side), mean)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


CLIP = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.mark.parametrize("size", [(60, 30), (30, 61), (40, 40)])
def test_pictures_are_padded_to_squares_as_in_the_original(made, size):
    picture = tiny_picture(2, size)
    _, out, result = made
    ours = AutoProcessor.from_pretrained(out).image_processor(picture).pixel_values[0]
    assert np.array_equal(ours, CLIP(padded_square(picture)).pixel_values[0])
    assert result["warnings"][0].startswith("pictures are padded to squares, as in the original")


def test_or_they_are_cropped_as_in_llava_hfs_copies_and_that_is_said(made, tmp_path):
    result = run(made[0], tmp_path / "out", flags=QUICK | {"convert.image_aspect": "keep"})
    processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert type(processor) is CLIPImageProcessorPil
    assert np.array_equal(processor(WIDE).pixel_values[0], CLIP(WIDE).pixel_values[0])
    assert "not padded to squares as in the original" in result["warnings"][0]


def test_an_original_that_crops_is_left_alone_unless_padding_is_asked_for(tmp_path):
    model = originals.native()
    source = originals.write_original(tmp_path / "llava", model, image_aspect_ratio=None)
    kinds = {}
    for aspect in (None, "pad"):
        out = tmp_path / str(aspect)
        run(source, out, flags=QUICK | {"convert.image_aspect": aspect})
        kinds[aspect] = type(AutoProcessor.from_pretrained(out).image_processor).__name__
    assert kinds == {None: "CLIPImageProcessorPil", "pad": "LlavaImageProcessorPil"}


def test_a_model_in_transformers_layout_is_padded_on_demand(tmp_path):
    llava = tiny_llava(tmp_path / "llava")
    result = run(llava, tmp_path / "out", flags={"convert.image_aspect": "pad"})
    described = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    before = json.loads((llava / "processor_config.json").read_text())
    assert described["image_processor"] == before["image_processor"] | {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
    }
    assert result["warnings"] == ["pictures are padded to squares, as in the original LLaVA 1.5"]
    shutil.rmtree(tmp_path / "out")
    before["image_processor"]["image_processor_type"] = "PixtralImageProcessor"
    (llava / "processor_config.json").write_text(json.dumps(before))
    with pytest.raises(VictorError, match="its image processor is PixtralImageProcessor in llava"):
        run(llava, tmp_path / "out", flags=QUICK | {"convert.image_aspect": "pad"})


@pytest.mark.parametrize(
    ("name", "text", "aspect", "becomes"),
    [
        ("llava-next-interleave-qwen-7b", "qwen2", "anyres", "llava"),
        ("llava-next-qwen-7b", "qwen2", "anyres", "llava_next"),
        ("not-interleaved", "qwen2", "anyres", "llava_next"),
        ("interleave-studies/llava-next", "qwen2", "anyres", "llava_next"),
        ("llava-interleave", "llama", "anyres", "llava_next"),
        ("llava-interleave", "qwen2", "anyres_max_9", "llava_onevision"),
    ],
)
def test_a_model_sees_each_picture_whole_if_name_and_configuration_say_so(
    name, text, aspect, becomes
):
    config = originals.original_config(originals.native(text=text), "interleave")
    more = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": aspect}
    assert target_of(config | more, name) == becomes


# ---- Prompts -------------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
    {"role": "user", "content": [{"type": "text", "text": "where?"}]},
]
CHATML = (
    "<|im_start|>user\n<image>\nwhat?<|im_end|>{0}<|im_start|>assistant\na cat<|im_end|>{0}"
    "<|im_start|>user\nwhere?<|im_end|>{0}<|im_start|>assistant\n"
)
PROMPTS = {
    ("llama", "vicuna"): "USER: <image>\nwhat? ASSISTANT: a cat USER: where? ASSISTANT:",
    ("mistral", "vicuna"): "[INST] <image>\nwhat? [/INST] a cat</s>[INST] where? [/INST]",
    ("mixtral", "vicuna"): "[INST] <image>\nwhat? [/INST] a cat</s>[INST] where? [/INST]",
    ("gemma", "vicuna"): (
        "<start_of_turn>user\n<image>\nwhat?<end_of_turn>\n"
        "<start_of_turn>model\na cat<end_of_turn>\n"
        "<start_of_turn>user\nwhere?<end_of_turn>\n<start_of_turn>model\n"
    ),
    ("llama", "hermes"): CHATML.format(""),
    ("qwen2", "qwen"): CHATML.format("\n"),
    ("llama", "llama3"): (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nwhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na cat<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nwhere?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


@pytest.mark.parametrize(("text", "taught"), PROMPTS)
def test_the_chat_template_is_that_which_the_language_model_was_taught(text, taught):
    tokenizer = originals.tokenizer()
    known = {"vicuna": {}, "llama3": {"<|start_header_id|>": 1}}.get(taught)
    if known is not None:
        tokenizer.get_vocab = lambda: known
    _, template = prompts.template_of(tokenizer, text)
    prompt = tokenizer.apply_chat_template(
        CHAT, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert prompt == PROMPTS[text, taught]


@pytest.mark.parametrize("name", ["VICUNA", "MISTRAL", "QWEN", "HERMES", "LLAMA3", "GEMMA"])
def test_only_what_the_assistant_says_is_learned(name):
    tokenizer = originals.tokenizer()  # has no token for space, where the oldest transformers errs
    found = tokenizer.apply_chat_template(
        CHAT,
        chat_template=getattr(prompts, name),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    told = zip(found["input_ids"], found["assistant_masks"], strict=True)
    learned = [token for token, mask in told if mask]
    assert tokenizer.decode(learned) == ("a cat </s>" if name == "MISTRAL" else "a cat")
