"""Tiny LLaVA folders, pictures and rows for tests, each decided by a seed."""

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from victorctl.data.conversations import Conversation, Row

VISUAL_TOKENS = 16  # (32 / 8) ** 2, without the class token
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = tuple(
    "user assistant : ? . , ! what is the a an in of where how many are there left right above "
    "below picture this that it and or not yes no one two three four five six seven eight nine ten "
    "red green blue black white cat dog bird fish car house tree star sun moon heart apple big "
    "small first second same different look at describe please color which do you see both "
    "these round tall near far old new fast slow warm cold soft hard long short".split()
)

TEXT = {  # of a tiny text model
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {  # of a tiny vision tower
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 32,
}

# As in llava-hf/llava-1.5-7b-hf: pictures first, then the texts; nothing ends an answer.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_llava(  # noqa: PLR0913
    folder: Path,
    *,
    text: str = "llama",
    layers: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    template: str = TEMPLATE,
) -> Path:
    """Write a LLaVA folder with random weights and return it.

    The text model is 32 wide with 4 heads and 2 key-value heads, the CLIP tower has 3 layers and
    gives 16 visual tokens for any picture. Equal arguments give equal bytes.

    Args:
        folder: Where to write; may exist if it is empty.
        text: Backbone, a model type of transformers. Gemma's embeddings are tied.
        layers: Layers of the text model.
        seed: Of the weights; the global random state is left as it was.
        dtype: Of the weights.
        max_shard_size: "100KB" gives several shards and an index.
        template: Chat template.
    """
    built = _built(text, layers, seed, dtype, max_shard_size, template)
    shutil.copytree(built, folder, dirs_exist_ok=True)
    return Path(folder)


def tiny_model(
    *, text: str = "llama", layers: int = 6, seed: int = 0, **more: Any
) -> LlavaForConditionalGeneration:
    """Build the model of `tiny_llava` in memory, in eval mode; `more` goes to the backbone."""
    config = LlavaConfig(
        text_config=CONFIG_MAPPING[text](**{**TEXT, "num_hidden_layers": layers, **more}),
        vision_config=CLIPVisionConfig(**TOWER),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=VISUAL_TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval()
        spread_weights(model)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return model


def tiny_tokenizer(
    placeholder: str = "<image>", special: Sequence[str] = (), **named: str
) -> PreTrainedTokenizerFast:
    """Build a tokenizer: words split at spaces, lower case, <s> in front.

    Args:
        placeholder: Spelling of a visual token.
        special: Further tokens that are never split.
        named: Those of them that processors ask the tokenizer for, such as `image_token`.
    """
    known = {placeholder if word == "<image>" else word: id for word, id in _vocabulary().items()}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    words.add_special_tokens([*special])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named or [placeholder],
        padding_side="left",
        model_max_length=512,
    )


def tiny_processor(template: str = TEMPLATE) -> LlavaProcessor:
    """Build the processor of `tiny_llava`."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return LlavaProcessor(
        pictures,
        tiny_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" takes off again
        chat_template=template,
    )


def tiny_picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Draw 4 x 4 blocks of random colours; equal seeds and sizes give equal pictures."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def tiny_conversation(*, images: int = 1, turns: int = 1, seed: int = 0) -> Conversation:
    """Make a conversation of known words about so many pictures, all in its first turn."""
    draw = np.random.default_rng(seed)
    messages = []
    for turn in range(turns):
        words = " ".join(draw.choice(WORDS[4:], 3 + seed % 3))  # lengths differ between seeds
        question = [{"type": "image"}] * images * (turn == 0)
        question.append({"type": "text", "text": f"what is {words} ?"})
        answer = " ".join(draw.choice(WORDS[-30:], 1 + turn % 2))
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return Conversation(tuple(messages), type=("what", "where")[seed % 2])


def tiny_rows(count: int = 4, *, questions: int = 2, images: Sequence[int] = (1,)) -> list[Row]:
    """Make rows in memory; row i has images[i % len(images)] pictures and so many conversations."""
    rows = []
    for index in range(count):
        amount = images[index % len(images)]
        rows.append(
            Row(
                id=str(index),
                images=tuple(tiny_picture(100 * index + place) for place in range(amount)),
                conversations=tuple(
                    tiny_conversation(images=amount, seed=100 * index + place)
                    for place in range(questions)
                ),
            )
        )
    return rows


def tiny_data(
    folder: Path,
    count: int = 4,
    *,
    images: Sequence[int] = (1,),
    sizes: Sequence[tuple[int, int]] = ((32, 32),),
) -> Path:
    """Write rows of two turns in LLaVA's format, and return the .json file.

    Args:
        folder: New, or it has the same rows.
        count: Of rows.
        images: Pictures of a row, in turn.
        sizes: Width and height of pictures, in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, drawn = [], 0
    for index in range(count):
        files = []
        for _ in range(images[index % len(images)]):
            files.append(f"{drawn}.png")
            tiny_picture(drawn, sizes[drawn % len(sizes)]).save(folder / files[-1])
            drawn += 1
        texts = [
            " ".join(part["text"] for part in message["content"] if part["type"] == "text")
            for message in tiny_conversation(turns=2, seed=index).messages
        ]
        texts[0] = "<image>\n" * len(files) + texts[0]
        turns = [
            {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
        ]
        shown = files if len(files) > 1 else files[0]
        rows.append({"id": f"row-{index}", "image": shown, "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


_FOLDERS: list[tempfile.TemporaryDirectory] = []  # deleted when the interpreter ends


@functools.cache
def _built(  # noqa: PLR0913
    text: str, layers: int, seed: int, dtype: torch.dtype, max_shard_size: str, template: str
) -> Path:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tiny-llava-"))
    folder = Path(_FOLDERS[-1].name)
    model = tiny_model(text=text, layers=layers, seed=seed).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_processor(template).save_pretrained(folder)
    return folder


def _vocabulary() -> dict[str, int]:
    return {word: place for place, word in enumerate((*SPECIAL, *WORDS))}


@torch.no_grad()
def spread_weights(model: PreTrainedModel) -> None:
    """Make every part matter: norms are not one, biases not zero, logits depend on pictures."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() == 1:
            parameter.add_(0.2 * noise)
        else:
            parameter.copy_(0.4 * noise)
