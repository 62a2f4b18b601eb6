"""Answers are the model's own, whatever stands beside them in the batch."""

import pytest
import torch

from tests.tiny import tiny_model, tiny_processor, tiny_rows
from tests.victor_models import shared
from victorctl.answering import Contestant, Greedy, by_method
from victorctl.asking import Asking
from victorctl.contestants import Base
from victorctl.methods import FLOOR, METHODS, made, method
from victorctl.questions import prepare, questions

ROWS = tiny_rows(4, questions=2, images=(1, 0, 2, 1))
LONGEST = 5
EVERYONE = [name for name in METHODS if not method(name).extras]


def contestants(names):
    model = shared(adapted=True)
    ways = {name: made(name, count=5, layer=2, seed=0) for name in names}
    return {
        "model": Contestant(model, lambda _rows: torch.no_grad()),
        "base": Base(model, "tiny", False, {}).contestant(),
        **{name: by_method(way, model) for name, way in ways.items()},
    }


def answers(batch_size, names=EVERYONE):
    greedy = Greedy.of(shared(adapted=True), tiny_processor())
    asking = Asking(contestants(names), greedy, batch_size, LONGEST, quiet=True)
    return asking.ask(questions(ROWS, None))


@pytest.fixture(scope="module")
def one_by_one():
    return answers(1)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_batches_of_any_size_give_the_same_answers(one_by_one, batch_size):
    assert answers(batch_size) == one_by_one


def test_everybody_answers_in_a_way_of_their_own(one_by_one):
    told = {tuple(texts) for texts in one_by_one.texts.values()}

    assert len(told) == len(one_by_one.texts) == 2 + len(EVERYONE)
    assert [size.images for size in one_by_one.sizes] == [1, 1, 0, 0, 2, 2, 1, 1]


def test_the_base_answers_what_the_native_class_answers(one_by_one):
    native, processor = tiny_model(), tiny_processor()
    expected = []
    for row in ROWS:
        for conversation in row.conversations:
            text = processor.apply_chat_template(
                list(conversation.messages[:-1]), add_generation_prompt=True
            )
            pictures = {"images": [row.pictures()]} if row.images else {}
            inputs = processor(text=[text], **pictures, return_tensors="pt")
            written = native.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
            new = written[:, inputs["input_ids"].shape[1] :]
            expected += [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)]

    assert one_by_one.texts["base"] == expected
    assert len(set(expected)) > 4  # they depend on the question


def test_what_methods_spend_is_counted_question_by_question(one_by_one):
    assert one_by_one.entered.keys() == set(EVERYONE)
    assert one_by_one.entered["last"][0] == [16, 16, 5, 5, 5, 5]
    assert one_by_one.entered["last"][4] == [32, 32, 10, 10, 10, 10]  # of two pictures
    assert one_by_one.entered["vtc-cls"][0] == [5] * 6
    assert {tuple(of[2]) for of in one_by_one.entered.values()} == {(0,) * 6}  # of none
    assert {tuple(of) for of in one_by_one.entered["no-image"]} == {(0,) * 6}


def test_a_model_sees_each_picture_once_for_all_that_share_it_and_have_no_eyes_of_their_own(
    monkeypatch,
):
    model = shared(adapted=True)
    real, seen = model.model.get_image_features, []

    def count(pixel_values, **kwargs):
        seen.append(len(pixel_values))
        return real(pixel_values, **kwargs)

    monkeypatch.setattr(model.model, "get_image_features", count)
    answers(8, FLOOR)
    assert seen == [4]

    answers(8, ["vtc-cls", "fastv", "visionzip"])
    assert seen == [4, 4, 8, 8]  # by those that have them, once for each of the questions


def test_an_answer_stops_where_the_model_does_or_at_the_end_token():
    model, processor = tiny_model(), tiny_processor()
    assert Greedy.of(model, processor).stop == (2,)

    model.generation_config.eos_token_id = [5, 6]
    assert Greedy.of(model, processor).stop == (5, 6)

    model.generation_config.eos_token_id = None
    assert Greedy.of(model, processor).stop == (processor.tokenizer.eos_token_id,)


def test_the_models_own_sampling_settings_do_not_count():
    model, processor = tiny_model(), tiny_processor()
    asked = prepare(questions(ROWS, None)[:1], processor, pictures=True)
    who = Contestant(model, lambda _rows: torch.no_grad())

    def write():
        greedy = Greedy.of(model, processor)
        return greedy.generate(who, asked.for_model(model), asked.rows, most=6)

    plain = write()
    model.generation_config.update(
        do_sample=True,
        temperature=5.0,
        top_k=2,
        top_p=0.5,
        repetition_penalty=9.0,
        max_new_tokens=1,
    )

    assert write().tolist() == plain.tolist()


def test_exactly_so_many_tokens_are_written_if_asked_for():
    model, processor = tiny_model(), tiny_processor()
    asked = prepare(questions(ROWS, None), processor, pictures=True)
    who = Contestant(model, lambda _rows: torch.no_grad())
    plain = Greedy(processor, (2,)).generate(who, asked.for_model(model), asked.rows, most=4)
    often = plain[:, 0].tolist()  # every first token ends an answer

    short = Greedy(processor, tuple(often)).generate(
        who, asked.for_model(model), asked.rows, most=4
    )
    long = Greedy(processor, tuple(often)).generate(
        who, asked.for_model(model), asked.rows, most=4, least=4
    )

    assert short.shape[1] == 1
    assert long.shape[1] == 4
    assert not set(long[:, :3].flatten().tolist()) & set(often)
