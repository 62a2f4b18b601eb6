"""Tokenizer, chat template and image processing of an original layout, as transformers reads them.

Source: transformers 4.46, models/llava*/convert_llava*_weights_to_hf.py, for tokens, sizes and
prompts; haotian-liu/LLaVA, llava/mm_utils.py (process_images), for pad-to-square;
LLaVA-VL/LLaVA-NEXT, llava/conversation.py, for Gemma's prompt.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from victorctl.checkpoint import in_short, quiet_loading
from victorctl.errors import VictorError
from victorctl.layouts.towers import Tower

IMAGE, VIDEO, PAD = "<image>", "<video>", "<pad>"
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "*.tiktoken")
MULTIPLE = 64  # that a vocabulary which grows is filled up to
SPARE = 2  # tokens that the official conversion makes room for

_IMAGES = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
)
_VIDEOS = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\\n' }}{% endfor %}"
)


def _texts(before: str = "", end: str = "", after: str = "") -> str:
    """Write all texts of a message.

    Args:
        before: Written before each.
        end: Token that ends it: the assistant's texts, with it, are what a model learns.
        after: Written after each. Space has no token of its own everywhere, and is not learned.
    """
    text = f"{{{{ part['text'] + {end!r} }}}}"
    return (
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        + f"{{{{ {before!r} }}}}"
        + "{% if message['role'] == 'assistant' %}{% generation %}"
        + text
        + "{% endgeneration %}{% else %}"
        + text
        + f"{{% endif %}}{{{{ {after!r} }}}}{{% endfor %}}"
    )


def _template(message: str, prompt: str) -> str:
    return (
        "{% for message in messages %}"
        + message
        + "{% endfor %}{% if add_generation_prompt %}{{ "
        + repr(prompt)
        + " }}{% endif %}"
    )


def _chatml(end: str) -> str:
    begin = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    return _template(
        begin + _IMAGES + _VIDEOS + _texts() + f"{{{{ {end!r} }}}}",
        "<|im_start|>assistant\n",
    )


VICUNA = _template(
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    + _IMAGES
    + _texts(after=" "),
    "ASSISTANT:",
)
MISTRAL = _template(
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\\n' + message['content'][0]['text'] "
    "+ '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    + _IMAGES
    + _texts()
    + "{{ ' [/INST]' }}{% else %}"
    + _texts(" ", "</s>")
    + "{% endif %}",
    "",
)
LLAMA3 = _template(
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    + _IMAGES
    + _texts()
    + "{{ '<|eot_id|>' }}",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
GEMMA = _template(  # it knows no system
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    + _IMAGES
    + _texts()
    + "{{ '<end_of_turn>\\n' }}",
    "<start_of_turn>model\n",
)
QWEN = _chatml("<|im_end|>\n")
HERMES = _chatml("<|im_end|>")


def template_of(tokenizer: Any, backbone: str) -> tuple[str, str]:
    """Choose the chat template that a language model was taught, with its name."""
    known = tokenizer.get_vocab()
    if backbone == "gemma":
        return "Gemma's", GEMMA
    if backbone.startswith("qwen"):
        return "Qwen's", QWEN
    if "<|im_start|>" in known:
        return "Hermes's", HERMES
    if "<|start_header_id|>" in known:
        return "Llama 3's", LLAMA3
    own = backbone in ("mistral", "mixtral")
    return ("Mistral's", MISTRAL) if own else ("Vicuna's", VICUNA)


def load_tokenizer(folder: Path, config: Mapping[str, Any], length: int | None) -> Any:
    """Load the original's tokenizer with the tokens that transformers' model needs.

    Args:
        folder: Holds the tokenizer's files.
        config: `config.json` in transformers' layout.
        length: Longest prompt that it was trained with.

    Raises:
        VictorError: If there is none that transformers can load.
    """
    from transformers import AddedToken, AutoConfig, AutoTokenizer

    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=AutoConfig.for_model(**config), trust_remote_code=False
            )
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        raise _no_tokenizer(folder, error) from error
    tokens = [IMAGE, VIDEO] if config["model_type"] == "llava_onevision" else [IMAGE]
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )
    if _needs_pad(tokenizer, config):
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    if length:
        tokenizer.model_max_length = length
    return tokenizer


def _no_tokenizer(folder: Path, error: Exception) -> VictorError:
    if any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        return VictorError(
            f"{folder}: transformers cannot load its tokenizer ({in_short(error)})",
            fix="copy the language model's tokenizer files into the folder anew, or install what "
            "transformers asks for",
        )
    return VictorError(
        f"{folder}: no tokenizer that transformers can load",
        fix="copy the language model's tokenizer files into the folder",
    )


def _needs_pad(tokenizer: Any, config: Mapping[str, Any]) -> bool:
    """Say whether the official conversion adds a token for padding."""
    if config["text_config"]["model_type"].startswith("qwen"):
        return tokenizer.pad_token is None
    return config["model_type"] == "llava" or tokenizer.pad_token is None


def with_tokens(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Write the new tokens' ids into a configuration, and make room for them.

    The vocabulary grows as it does in the official conversion: by two and to a multiple of 64; that
    of a LLaVA-NeXT only if it has no rows to spare.
    """
    config = {**config, "text_config": dict(config["text_config"])}
    text = config["text_config"]
    rows = text["vocab_size"]
    highest = max(tokenizer.convert_tokens_to_ids([IMAGE, tokenizer.pad_token or IMAGE]))
    spare = config["model_type"] == "llava_next" and max(len(tokenizer) - 1, highest) < rows
    if not spare:
        rows = max(rows + SPARE, len(tokenizer), highest + 1)
        text["vocab_size"] = -(-rows // MULTIPLE) * MULTIPLE
    config["image_token_index"] = tokenizer.convert_tokens_to_ids(IMAGE)
    if config["model_type"] == "llava_onevision":
        config["video_token_index"] = tokenizer.convert_tokens_to_ids(VIDEO)
    if tokenizer.pad_token == PAD:
        config["pad_token_id"] = text["pad_token_id"] = tokenizer.pad_token_id
    return config


def write_processor(
    folder: Path, config: Mapping[str, Any], tower: Tower, tokenizer: Any, *, pad: bool
) -> str:
    """Write tokenizer, processor and chat template into a folder, and return the template's name.

    Args:
        folder: Where to write.
        config: `config.json` in transformers' layout.
        tower: Says how large pictures are.
        tokenizer: Of `load_tokenizer`.
        pad: Whether pictures become squares by padding.
    """
    name, template = template_of(tokenizer, config["text_config"]["model_type"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    made = _processor(config, tower) | {"image_processor": image_processor(config, tower, pad=pad)}
    (folder / "processor_config.json").write_text(json.dumps(made, indent=2) + "\n")
    return name


def _processor(config: Mapping[str, Any], tower: Tower) -> dict[str, Any]:
    common = {
        "image_token": IMAGE,
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    if config["model_type"] == "llava_onevision":
        side = {"height": tower.config["image_size"], "width": tower.config["image_size"]}
        return common | {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": tower.visual_tokens + tower.is_clip,  # the class token
            "video_token": VIDEO,
            "vision_aspect_ratio": config["vision_aspect_ratio"],
            "video_processor": {
                "video_processor_type": "LlavaOnevisionVideoProcessor",
                "size": side,
                **tower.colours,
            },
        }
    kind = "LlavaNextProcessor" if config["model_type"] == "llava_next" else "LlavaProcessor"
    return common | {
        "processor_class": kind,
        "patch_size": tower.config["patch_size"],
        "num_additional_image_tokens": int(tower.is_clip),  # the class token
    }


def image_processor(config: Mapping[str, Any], tower: Tower, *, pad: bool) -> dict[str, Any]:
    """Describe how pictures become numbers."""
    side = tower.config["image_size"]
    square = {"height": side, "width": side}
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        **tower.colours,
    }
    crop = {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": side}}
    if config["model_type"] == "llava_onevision":
        grid = {"do_pad": True, "image_grid_pinpoints": config["image_grid_pinpoints"]}
        return (
            common
            | grid
            | {
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "size": square,
            }
        )
    if config["model_type"] == "llava_next":
        grid = {"do_pad": True, "image_grid_pinpoints": config["image_grid_pinpoints"]}
        return common | crop | grid | {"image_processor_type": "LlavaNextImageProcessor"}
    if pad:
        return common | crop | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    if tower.is_clip:
        return common | crop | {"image_processor_type": "CLIPImageProcessor"}
    return common | {"image_processor_type": "SiglipImageProcessor", "size": square}
