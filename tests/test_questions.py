"""Questions are listed, batched, and written as prompts with the right pictures."""

import dataclasses

import pytest
import torch

from tests.tiny import VISUAL_TOKENS, tiny_picture, tiny_processor, tiny_rows
from tests.victor_models import shared_native
from victorctl.data.records import Embedded
from victorctl.questions import batches, prepare, questions


class Closed:
    """A picture that counts how often it is opened."""

    def __init__(self, seed):
        self.seed, self.opened = seed, 0

    def __call__(self):
        self.opened += 1
        return tiny_picture(self.seed)


def closed_rows(*images, each=2):
    rows = tiny_rows(len(images), questions=each, images=images)
    return [
        dataclasses.replace(row, images=tuple(Closed(10 * n + i) for i in range(count)))
        for n, (row, count) in enumerate(zip(rows, images, strict=True))
    ]


def test_questions_are_those_of_the_rows_in_order_and_open_no_picture():
    rows = closed_rows(1, 1, 1)

    asked = questions(rows, limit=5)

    assert [question.id for question in asked] == ["0/0", "0/1", "1/0", "1/1", "2/0"]
    assert [question.number for question in asked] == list(range(5))
    assert [question.conversation for question in asked[:2]] == list(rows[0].conversations)
    assert len(questions(rows, limit=None)) == 6
    assert [question.id for question in questions(tiny_rows(2, questions=1), None)] == ["0", "1"]
    assert not any(image.opened for row in rows for image in row.images)


def test_questions_about_the_same_files_are_about_the_same_pictures(tmp_path):
    first, second, third = tiny_rows(3, questions=1)
    file = tmp_path / "same.png"
    same = [dataclasses.replace(row, images=(file,)) for row in (first, second)]

    one, two, other = questions([*same, third], None)

    assert one.pictures == two.pictures
    assert one.key != two.key
    assert other.pictures not in (one.pictures, first.images)


def test_pictures_stored_in_the_data_are_told_apart_also_where_rows_share_a_name():
    rows = [
        dataclasses.replace(row, id="same", images=(Embedded(name, bytes),))
        for row, name in zip(
            tiny_rows(3, questions=1), ("a.tar:1", "a.tar:2", "a.tar:1"), strict=True
        )
    ]
    one, other, again = questions(rows, None)

    assert (one.pictures == again.pictures, one.pictures == other.pictures) == (True, False)


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_batches_hold_every_question_once_the_longest_rows_first(size):
    asked = questions(closed_rows(2, 1, 0, 1, 2, 1), None)

    cut = list(batches(asked, size))

    flat = [question for batch in cut for question in batch]
    assert sorted(question.number for question in flat) == list(range(12))
    assert all(len(batch) == size for batch in cut[:-1])
    assert [len(question.row.images) for question in flat] == [2] * 4 + [1] * 6 + [0] * 2
    assert [question.number // 2 for question in flat[::2]] == [q.number // 2 for q in flat[1::2]]
    assert cut == list(batches(asked, size))
    longest = [max(q.length for q in asked[2 * n : 2 * n + 2]) for n in range(6)]
    order = [question.number // 2 for question in flat[::2]]
    sizes = [(len(asked[2 * n].row.images), longest[n]) for n in order]
    assert sizes == sorted(sizes, reverse=True)  # what does not fit is known at once
    assert len(set(longest)) > 1


def test_a_batch_becomes_prompts_with_each_picture_opened_once():
    rows = closed_rows(0, 2, 1)
    asked = questions(rows, None)
    processor = tiny_processor()

    made = prepare(asked, processor, pictures=True)

    assert [image.opened for row in rows for image in row.images] == [1, 1, 1]
    assert made.shown == [0, 0, 1, 1, 2, 2]
    assert [size.images for size in made.sizes] == [0, 0, 2, 2, 1, 1]
    assert [size.visual for size in made.sizes] == [0, 0, *[2 * VISUAL_TOKENS] * 2, *[16] * 2]
    ids, mask = made.text["input_ids"], made.text["attention_mask"]
    assert (ids[mask == 0] == 0).all()
    assert (mask[:, -1] == 1).all()  # padded on the left
    assert [size.visual + size.text for size in made.sizes] == mask.sum(dim=1).tolist()
    assert len(set(made.rows)) == 3
    picture = processor.image_processor(rows[1].images[1](), return_tensors="pt")["pixel_values"]
    assert torch.equal(made.pictures[1]["pixel_values"][[1]], picture)


def test_a_prompt_ends_before_the_answer():
    asked = questions(tiny_rows(1, questions=1), None)
    (question,) = asked

    made = prepare(asked, tiny_processor(), pictures=True)
    text = tiny_processor().batch_decode(made.text["input_ids"], skip_special_tokens=True)[0]

    assert question.conversation.question.replace(" ", "") in text.replace(" ", "")
    assert text.replace(" ", "").endswith("assistant:")


def test_without_pictures_the_question_is_the_same_and_nothing_is_opened():
    rows = closed_rows(1, 2)
    asked = questions(rows, None)

    blind = prepare(asked, tiny_processor(), pictures=False)

    assert not any(image.opened for row in rows for image in row.images)
    assert blind.pictures == [{}, {}]
    assert not (blind.text["input_ids"] == tiny_processor().image_token_id).any()
    sighted = prepare(asked, tiny_processor(), pictures=True)
    assert [size.text for size in blind.sizes] == [size.text for size in sighted.sizes]


@torch.no_grad()
def test_seen_once_or_question_by_question_the_pictures_are_the_same():
    made = prepare(questions(closed_rows(1, 0, 2), None), tiny_processor(), pictures=True)
    model = shared_native()

    alone, together = made.for_model(model), made.seen_by(model)

    assert len(alone["pixel_values"]) == 6
    assert "pixel_values" not in together
    logits = [model(**inputs).logits[:, -1] for inputs in (alone, together)]
    assert (logits[0] - logits[1]).abs().max() < 1e-4
