"""One training step against the plain computation that it shortens.

Faults planted and caught: registers of the second picture left out, prefix of another row, teacher
with its visual tokens dropped, labels not shifted, padding of the suffix attended to; states
matched before the layer instead of behind it, at padding, at further pictures, at answers alone.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.tiny import tiny_conversation, tiny_model, tiny_picture, tiny_processor, tiny_rows
from tests.victor_models import IMAGE, victor_llava
from victorctl.collation import collate
from victorctl.data.batches import IGNORED, encode, join_images
from victorctl.data.conversations import Row
from victorctl.distill import Distillation
from victorctl.losses import divergence, unlikeness
from victorctl.rungs import choose_parameters
from victorctl.sections import TrainSection
from victorctl.teacher import Targets, TeacherCache

ROWS = [*tiny_rows(3, questions=2), *tiny_rows(2, questions=1, images=(2, 3))]
SETTINGS = {"cross_entropy": 0.7, "distill": 0.9, "temperature": 2.0, "top_k": 10_000}


def plain_losses(model, native, rows, processor, temperature):
    """Every question alone, whole, with labels shifted here; the teacher is the native class."""
    cross, kl, apart = [], [], []
    for row in rows:
        encoded = encode(row, processor)
        for said in encoded.conversations:
            ids, labels = torch.tensor([said.input_ids]), torch.tensor(said.labels)
            at = [n for n in range(len(labels) - 1) if labels[n + 1] != IGNORED]
            how = {"use_cache": False, "output_hidden_states": True, **encoded.images}
            student = model(input_ids=ids, **how)
            with torch.no_grad():
                teacher = native(input_ids=ids, **how)
            logits = [output.logits[0, at] for output in (student, teacher)]
            cross.append(functional.cross_entropy(logits[0], labels[1:][at], reduction="none"))
            soft = [(each / temperature).log_softmax(-1) for each in logits]
            kl.append(functional.kl_div(*soft, log_target=True, reduction="none").sum(-1))
            apart += angles(student.hidden_states, teacher.hidden_states, said.input_ids)
    return torch.cat(cross).mean(), torch.cat(kl).mean() * temperature**2, torch.cat(apart).mean()


def angles(student, teacher, ids):
    """1 - cosine behind each of layers 2 to 5, at every word after the first of 16 placeholders."""
    words = [place for place in range(ids.index(IMAGE) + 16, len(ids)) if ids[place] != IMAGE]
    for number in range(3, 7):  # state 2 is what layer 2 is given
        one, other = (states[number][0, words] for states in (student, teacher))
        yield 1 - (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))


def trained(rung, positions="overlay", **settings):
    native = tiny_model()
    model = victor_llava(positions=positions)
    section = TrainSection(rung=rung, rank=3, **{**SETTINGS, **settings})
    parameters = choose_parameters(model, section)
    torch.manual_seed(2)
    for name, value in parameters.items():
        if "up" in name or "lora_B" in name or "offsets" in name:
            torch.nn.init.normal_(value, std=0.3)
    return native, model, parameters, section


@pytest.mark.parametrize("positions", ["overlay", "append"])
@pytest.mark.parametrize("rung", ["registers", "deep", "register-lora", "lora"])
def test_the_shared_prefix_gives_the_losses_and_gradients_of_the_plain_step(rung, positions):
    native, model, parameters, section = trained(rung, positions, hidden=0.8)
    processor = tiny_processor()

    losses = Distillation(model, section)(collate([encode(row, processor) for row in ROWS], 0))
    losses.total.backward()
    ours = {name: value.grad.clone() for name, value in parameters.items()}
    model.zero_grad()
    cross, kl, apart = plain_losses(model, native, ROWS, processor, 2.0)
    (0.7 * cross + 0.9 * kl + 0.8 * apart).backward()

    torch.testing.assert_close(losses.cross_entropy, cross, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.distill, kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.hidden, apart, rtol=1e-4, atol=1e-4)
    for name, value in parameters.items():
        scale = value.grad.abs().max()
        assert (ours[name] - value.grad).abs().max() <= 1e-3 * scale, name
        unread = "adapters.5" in name and "k_proj" not in name and "v_proj" not in name
        assert (scale == 0) == unread, (
            name
        )  # of the last layer's registers only keys and values are read


def test_nothing_but_the_rung_gets_a_gradient():
    _, model, parameters, section = trained("register-lora")
    batch = collate([encode(row, tiny_processor()) for row in ROWS], 0)

    Distillation(model, section)(batch).total.backward()

    touched = {name for name, value in model.named_parameters() if value.grad is not None}
    assert touched == set(parameters)
    assert all(name.startswith("victor.") for name in touched)


def test_conversations_that_begin_differently_are_all_learnt_from():
    asked = [tiny_conversation(seed=seed) for seed in range(3)]
    system = {"role": "system", "content": [{"type": "text", "text": "look"}]}
    asked[1] = replace(asked[1], messages=(system, *asked[1].messages))
    batch = collate([encode(Row("a", (tiny_picture(),), tuple(asked)), tiny_processor())], 0)

    assert batch.row.tolist() == [0, 0, 1]
    assert batch.prefix_mask.sum(dim=1).tolist() == [19, 20]
    assert len(set(batch.keys)) == 3


def test_divergence_counts_what_was_not_kept_as_one_class():
    # teacher .5 .3 .2, student .2 .2 .6; kept .5 and .3: .5 ln(.5/.2) + .3 ln(.3/.2) + .2 ln(.2/.6)
    student = torch.tensor([[0.2, 0.2, 0.6]]).log()
    teacher = Targets(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log())
    expected = 0.5 * 0.9162907 + 0.3 * 0.4054651 + 0.2 * -1.0986123

    assert divergence(student, teacher, 1.0).item() == pytest.approx(expected, abs=1e-6)


def test_divergence_of_equals_is_zero_and_temperature_keeps_the_size_of_gradients():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    both = [logits.log_softmax(-1), (logits / 100).log_softmax(-1)]
    index = torch.tensor([[0, 1, 2]])

    assert divergence(logits, Targets(index, both[0]), 1.0).item() == pytest.approx(0, abs=1e-6)
    # far above every logit, 100^2 KL tends to half the variance of the logits' difference, which is
    # that of (1, 0, 0) here
    moved = logits + torch.tensor([[1.0, 0.0, 0.0]])
    assert divergence(moved, Targets(index, both[1]), 100.0).item() == pytest.approx(
        1 / 9, rel=0.02
    )


def test_states_are_compared_by_direction_and_every_token_counts_alike():
    # cosines 1, for being longer does not matter, 0 and 0.6
    ours = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [9.0, 0.0]]])

    assert unlikeness(ours, teacher).item() == pytest.approx((0 + 1 + 0.4) / 3)
    assert unlikeness(ours.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("weights", [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
def test_the_teacher_is_asked_where_something_of_it_is_wanted(weights, monkeypatch):
    cross_entropy, distill, hidden = weights
    parts = {"cross_entropy": cross_entropy, "distill": distill, "hidden": hidden}
    _, model, _, section = trained("registers", **parts)
    student = Distillation(model, section)
    asked, teach = [], student._teach
    monkeypatch.setattr(student, "_teach", lambda *given: asked.append(1) or teach(*given))

    losses = student(collate([encode(ROWS[0], tiny_processor())], 0))

    assert len(asked) == distill + hidden
    assert losses.total == sum(getattr(losses, name) * weight for name, weight in parts.items())
    assert (losses.distill > 0) == (distill > 0)
    assert (losses.hidden > 0) == (hidden > 0)


def test_a_teacher_that_reads_some_questions_at_a_time_says_the_same(monkeypatch):
    _, model, _, section = trained("lora", hidden=0.5)
    batch = collate([encode(row, tiny_processor()) for row in ROWS], 0)
    whole = Distillation(model, section)(batch)
    monkeypatch.setattr("victorctl.distill.COPIED", 1)  # 5 rows: of 8 questions, 5 and then 3
    parts = Distillation(model, section)(batch)

    for name, value in whole._asdict().items():
        torch.testing.assert_close(getattr(parts, name), value, rtol=1e-5, atol=1e-6)


def test_a_known_teacher_is_not_asked_again_and_changes_nothing(tmp_path, monkeypatch):
    _, model, _, section = trained("register-lora", top_k=5)
    batch = collate([encode(row, tiny_processor()) for row in ROWS], 0)
    live = Distillation(model, section)(batch)
    first = Distillation(model, section, TeacherCache({"base": "x"}, tmp_path))
    filled = first(batch)
    first.known.flush()

    again = Distillation(model, section, TeacherCache({"base": "x"}, tmp_path))
    monkeypatch.setattr(again, "_teach", lambda *_: pytest.fail("the teacher was asked"))
    found = again(batch)

    assert torch.equal(live.total, filled.total)
    assert torch.equal(filled.total, found.total)
    assert TeacherCache({"base": "y"}, tmp_path).find(batch.keys) is None


def test_a_question_is_known_by_its_words_its_answer_and_its_picture():
    row = Row("a", (tiny_picture(1),), (tiny_conversation(seed=1),))
    other_picture = Row("a", (tiny_picture(2),), (tiny_conversation(seed=1),))
    other_words = Row("a", (tiny_picture(1),), (tiny_conversation(seed=2),))
    processor = tiny_processor()
    encoded = [encode(each, processor) for each in (row, other_picture, other_words)]
    (said,) = encoded[0].conversations
    unasked = replace(said, labels=[IGNORED] * (len(said.labels) - 1) + said.labels[-1:])
    encoded.append(replace(encoded[0], conversations=(unasked,)))
    keys = {collate([each], 0).keys[0] for each in encoded}

    assert len(keys) == 4
    assert collate([encode(ROWS[0], processor), encoded[0]], 0).keys[-1] in keys


def test_pictures_of_all_rows_are_joined_in_reading_order():
    processor = tiny_processor()
    encoded = [encode(row, processor) for row in ROWS]
    batch = collate(encoded, 0)

    assert torch.equal(
        batch.images["pixel_values"], join_images([row.images for row in encoded])["pixel_values"]
    )
    assert batch.row.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]
