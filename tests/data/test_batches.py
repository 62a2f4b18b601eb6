"""Rows as tensors."""

import itertools

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaNextImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from tests.processors import PROCESSORS
from tests.tiny import (
    TEMPLATE,
    VISUAL_TOKENS,
    tiny_conversation,
    tiny_picture,
    tiny_processor,
    tiny_rows,
)
from victorctl.data.batches import IGNORED, encode, join_images, pad, prompts
from victorctl.data.conversations import Conversation, Row
from victorctl.data.formats import messages
from victorctl.errors import VictorError


def unmarked(template):
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


PARTS = (
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}" + PARTS + "{% endgeneration %}<|im_end|>{{ '\n' }}"
    "{% else %}" + PARTS + "<|im_end|>{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED_WITH_END = CHATML.replace(
    "{% endgeneration %}<|im_end|>{{ '\n' }}", "<|im_end|>{{ '\n' }}{% endgeneration %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] " + PARTS + " [/INST]"
    "{% else %}{{ ' ' }}" + PARTS + "</s>{% endif %}{% endfor %}"
)
LLAMA_2 = MISTRAL.replace("</s>", " </s>")
LLAMA_2_MARKED = LLAMA_2.replace(
    "{{ ' ' }}" + PARTS, "{{ ' ' }}{% generation %}" + PARTS + "{% endgeneration %}"
)
NO_END = MISTRAL.replace("[INST] ", "<s>[INST] ").replace("</s>", "")

TWO_TURNS = messages(
    {
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat"},
            {"from": "human", "value": "Is it red?"},
            {"from": "gpt", "value": "no"},
        ]
    },
    images=1,
)
CAT = Row("cat", (tiny_picture(0),), (Conversation(TWO_TURNS),))


def byte_processor(template, kind=LlavaProcessor):
    """Make a processor with one token for each byte, so that every space counts."""
    alphabet = {letter: place for place, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokens = Tokenizer(models.BPE(alphabet, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>", "<|im_start|>", "<|im_end|>"],
    )
    tiny = tiny_processor(template)
    return kind(
        tiny.image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def answers(encoded, processor):
    """Decode each run of labels."""
    runs = itertools.groupby(encoded.labels, lambda label: label != IGNORED)
    return [processor.tokenizer.decode(list(run)) for labelled, run in runs if labelled]


@pytest.mark.parametrize(
    ("template", "labelled"),
    [
        # The prompt ends in "ASSISTANT:", so the space is the model's; only the last turn is ended.
        (TEMPLATE, [" A cat", " no</s>"]),
        (unmarked(TEMPLATE), [" A cat", " no</s>"]),
        # The prompt ends in a line break; the one after <|im_end|> is not the model's.
        (CHATML, ["A cat<|im_end|>", "no<|im_end|>"]),
        (CHATML_MARKED_WITH_END, ["A cat<|im_end|>", "no<|im_end|>"]),
        (unmarked(CHATML), ["A cat<|im_end|>", "no<|im_end|>"]),
        (MISTRAL, [" A cat</s>", " no</s>"]),
        (LLAMA_2, [" A cat </s>", " no </s>"]),
        (LLAMA_2_MARKED, [" A cat </s>", " no </s>"]),
        # A turn that opens with <s> does not end the one before.
        (NO_END, [" A cat", " no</s>"]),
    ],
)
def test_labels_are_the_answers_and_the_token_that_ends_each(template, labelled):
    processor = byte_processor(template)
    (encoded,) = encode(CAT, processor).conversations

    assert answers(encoded, processor) == labelled
    kept = [(i, k) for i, k in zip(encoded.input_ids, encoded.labels, strict=True) if k != IGNORED]
    assert all(token == label for token, label in kept)


@pytest.mark.parametrize("template", [TEMPLATE, CHATML, unmarked(CHATML), MISTRAL])
def test_prompt_and_labels_of_the_last_answer_are_together_the_training_tokens(template):
    processor = byte_processor(template)
    (encoded,) = encode(CAT, processor).conversations
    (prompt,) = prompts(CAT, processor).conversations
    start = len(prompt.input_ids)

    assert prompt.input_ids + encoded.labels[start:] == encoded.input_ids
    assert set(prompt.labels) == {IGNORED}


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("turns", [1, 3])
def test_marks_and_prefixes_give_the_same_tokens_and_labels(images, turns):
    pictures = tuple(tiny_picture(seed) for seed in range(images))
    conversations = tuple(
        tiny_conversation(images=images, turns=turns, seed=seed) for seed in range(3)
    )
    row = Row("row", pictures, conversations)
    processor, plain = tiny_processor(), tiny_processor(unmarked(TEMPLATE))
    encoded = encode(row, processor)

    assert encoded.conversations == encode(row, plain).conversations
    for tokens, conversation in zip(encoded.conversations, conversations, strict=True):
        said = [turn["content"][0]["text"] for turn in conversation.messages[1::2]]
        assert answers(tokens, processor) == [*said[:-1], f"{said[-1]} </s>"]
        assert tokens.input_ids.count(processor.image_token_id) == images * VISUAL_TOKENS
        assert tokens.input_ids[0] == processor.tokenizer.bos_token_id


class UnequalPictures(LlavaProcessor):
    """Gives the first picture 2 placeholders, the next 3, and ends each as Pixtral does."""

    text_kwargs = {"return_tensors": "pt"}  # noqa: RUF012  (as Pixtral's)

    def replace_image_token(self, image_inputs, image_idx, **options):
        return self.image_token * (2 + image_idx) + "<|im_end|>"


@pytest.mark.parametrize("kind", [LlavaProcessor, UnequalPictures])
def test_tokens_and_pictures_are_what_the_processor_makes_of_the_whole_chat(kind):
    processor = byte_processor(CHATML, kind)
    asked = messages({"images": 2, "question": "a <image> b <image>", "answer": "c"}, images=2)
    row = Row("row", (tiny_picture(0), tiny_picture(1)), (Conversation(asked),))
    text = processor.apply_chat_template([asked[0]], add_generation_prompt=True)
    whole = processor(images=row.pictures(), text=text, return_tensors="pt")
    encoded = prompts(row, processor)

    assert [encoded.conversations[0].input_ids] == whole["input_ids"].tolist()
    assert encoded.images.keys() == {"pixel_values"}
    assert torch.equal(encoded.images["pixel_values"], whole["pixel_values"])


def test_prefix_leaves_out_a_token_that_follows_the_placeholders():
    row = encode(CAT, byte_processor(CHATML, UnequalPictures))

    # <|im_start|>, the 5 bytes of "user" and a line break, 2 placeholders
    assert row.prefix == 1 + 5 + 2


@pytest.mark.parametrize(
    ("images", "prefix"),
    [
        (0, 0),
        (1, 19),  # <s> user : and 16 placeholders
        (2, 19),  # the second picture follows at once; the shared part ends with the first
    ],
)
def test_prefix_ends_with_the_last_placeholder_of_the_first_picture(images, prefix):
    row = encode(tiny_rows(1, images=[images])[0], tiny_processor())

    assert [conversation.prefix for conversation in row.conversations] == [prefix, prefix]
    assert row.prefix == prefix


def test_a_row_whose_conversations_begin_differently_shares_no_prefix():
    asked = [tiny_conversation(seed=seed) for seed in range(2)]
    system = {"role": "system", "content": [{"type": "text", "text": "look"}]}
    asked[1] = Conversation((system, *asked[1].messages))
    row = encode(Row("row", (tiny_picture(0),), tuple(asked)), tiny_processor())

    assert [conversation.prefix for conversation in row.conversations] == [19, 20]
    assert row.prefix == 0


def test_a_row_splits_into_those_that_share_a_prefix():
    asked = [tiny_conversation(seed=seed) for seed in range(3)]
    system = {"role": "system", "content": [{"type": "text", "text": "look"}]}
    asked[1] = Conversation((system, *asked[1].messages))
    row = encode(Row("row", (tiny_picture(0),), tuple(asked)), tiny_processor())
    first, second = row.by_prefix()

    assert first.conversations == (row.conversations[0], row.conversations[2])
    assert second.conversations == (row.conversations[1],)
    assert (first.prefix, second.prefix) == (19, 20)
    assert first.images is second.images is row.images


@pytest.mark.parametrize("make", [tiny_processor, PROCESSORS["aya_vision"]])  # <image> is no token
@pytest.mark.parametrize("template", [TEMPLATE, unmarked(TEMPLATE)])
def test_answers_after_a_picture_in_a_later_turn_are_found_behind_its_placeholders(make, template):
    look = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this ?"}]}
    cat = {"role": "assistant", "content": [{"type": "text", "text": "cat"}]}
    first = tiny_conversation(seed=1).messages
    row = Row("row", (tiny_picture(0), tiny_picture(1)), (Conversation((*first, look, cat)),))
    processor = make()
    processor.chat_template = template
    (encoded,) = encode(row, processor).conversations

    assert answers(encoded, processor) == [first[1]["content"][0]["text"], "cat </s>"]


def test_pictures_are_processed_once_for_all_conversations_of_a_row():
    drawn = []

    def draw():
        drawn.append(1)
        return tiny_picture(0)

    asked = tuple(tiny_conversation(seed=seed) for seed in range(4))
    row = encode(Row("row", (draw,), asked), tiny_processor())

    assert len(drawn) == 1
    assert {name: tuple(value.shape) for name, value in row.images.items()} == {
        "pixel_values": (1, 3, 32, 32)
    }
    assert len(row.conversations) == 4


def test_pictures_of_a_row_come_to_the_processor_as_one_sample(monkeypatch):
    # LLaVA-OneVision cuts a single picture into tiles, but not one of several in a sample.
    processor = tiny_processor()
    given = []
    process = type(processor).__call__

    def record(self, images, **options):
        given.append([len(sample) for sample in images])
        return process(self, images=images, **options)

    monkeypatch.setattr(type(processor), "__call__", record)
    encode(tiny_rows(1, images=[2])[0], processor)

    assert given == [[2]]


def test_a_template_that_writes_the_start_token_gives_only_one():
    row = tiny_rows(1)[0]

    written, added = (encode(row, tiny_processor(start + TEMPLATE)) for start in ("<s>", ""))
    assert written.conversations == added.conversations


def test_a_row_without_pictures_has_no_tensors():
    assert encode(tiny_rows(1, images=[0])[0], tiny_processor()).images == {}


def test_a_conversation_longer_than_the_tokenizers_limit_is_kept_whole():
    processor = tiny_processor()
    turns = [
        {"from": "human", "value": "<image> red" + " cat" * 600},
        {"from": "gpt", "value": "yes"},
    ]
    asked = Conversation(messages({"conversations": turns}, images=1))
    (encoded,) = encode(Row("long", (tiny_picture(0),), (asked,)), processor).conversations

    # <s> user : 16 placeholders, red, 600 cats, assistant : yes </s>
    assert len(encoded.input_ids) == 3 + 16 + 1 + 600 + 4
    assert answers(encoded, processor) == ["yes </s>"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "row cat: the model has no chat template"),
        # as Qwen3's, which forgets what was thought in earlier turns
        (
            "{% for message in messages %}{% if loop.last or message['role'] == 'user' %}"
            + PARTS
            + "{% endif %}{% endfor %}",
            "row cat: the chat template changes a turn when others follow it",
        ),
        # reads contents as strings, so loses pictures
        (
            unmarked(CHATML).replace("<image>", ""),
            "row cat: pictures in the rendered chat: 0, in the row: 1",
        ),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}",
            "row cat: the chat template failed: one turn only",
        ),
    ],
)
def test_a_template_that_does_not_fit_is_named_with_its_row(template, problem):
    processor = byte_processor(template)

    with pytest.raises(VictorError) as error:
        encode(CAT, processor)
    assert error.value.problem == problem


def test_a_picture_that_cannot_be_read_is_named_with_its_row(tmp_path):
    path = tmp_path / "cat.png"
    path.write_text("no picture")
    row = Row("7", (path,), (Conversation(TWO_TURNS),))

    with pytest.raises(VictorError, match=r"row 7: .*cat\.png: not a readable picture"):
        prompts(row, tiny_processor())


@pytest.mark.parametrize(
    ("side", "padded", "mask"),
    [
        ("left", [[5, 6, 7], [0, 0, 8], [0, 0, 0]], [[1, 1, 1], [0, 0, 1], [0, 0, 0]]),
        ("right", [[5, 6, 7], [8, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
    ],
)
def test_pads_on_either_side(side, padded, mask):
    found = pad([[5, 6, 7], [8], []], side=side, value=0)

    assert [tensor.tolist() for tensor in found] == [padded, mask]
    assert {tensor.dtype for tensor in found} == {torch.long}


def test_padding_has_the_given_value_and_the_mask_does_not_depend_on_it():
    labels, mask = pad([[1, IGNORED], [2]], side="right", value=IGNORED)

    assert labels.tolist() == [[1, IGNORED], [2, IGNORED]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_joined_pictures_of_different_tiles_are_what_the_processor_makes_of_all():
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=[[32, 64], [64, 64]],
    )
    wide, square = Image.new("RGB", (128, 64), "red"), Image.new("RGB", (90, 90), "blue")
    rows = [dict(processor([[image]], return_tensors="pt")) for image in (wide, square)]
    together = processor([[wide], [square]], return_tensors="pt")

    assert rows[0]["pixel_values"].shape[1] != rows[1]["pixel_values"].shape[1]
    joined = join_images([rows[0], {}, rows[1]])
    assert joined.keys() == together.keys() == {"pixel_values", "image_sizes"}
    for name, value in together.items():
        assert torch.equal(joined[name], value), name


def test_rows_without_any_picture_join_to_nothing():
    assert join_images([{}, {}]) == {}
