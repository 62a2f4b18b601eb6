"""A training step of the rungs that train the base's own weights, and of rows of text.

Faults planted and caught: a prefix without its gradient, a part that counts as much as a larger
one, keys that a layer computed again finds twice, registers put into a row of text.
"""

import pytest
import torch
from torch.nn import functional

from tests.test_distill import ROWS, trained
from tests.tiny import tiny_conversation, tiny_processor
from victorctl.collation import collate
from victorctl.data.batches import IGNORED, encode
from victorctl.data.conversations import Row
from victorctl.distill import Distillation
from victorctl.errors import VictorError
from victorctl.teacher import TeacherCache

TEXTS = [
    Row(name, (), tuple(tiny_conversation(images=0, seed=seed) for seed in seeds))
    for name, seeds in (("a", (1, 2)), ("b", (3,)))
]
RUNGS = ["lora-early", "full", "registers+projector", "register-lora+projector", "full+projector"]


def batch_of(rows):
    return collate([encode(row, tiny_processor()) for row in rows], 0)


def plain_loss(model, rows):
    """Cross-entropy of every question alone, by the model's own forward."""
    found = []
    for row in rows:
        encoded = encode(row, tiny_processor())
        for said in encoded.conversations:
            ids, labels = torch.tensor([said.input_ids]), torch.tensor(said.labels)
            logits = model(input_ids=ids, use_cache=False, **encoded.images).logits[0, :-1]
            found.append(
                functional.cross_entropy(
                    logits, labels[1:], ignore_index=IGNORED, reduction="none"
                )[labels[1:] != IGNORED]
            )
    return torch.cat(found).mean()


def gradients(loss, parameters):
    for value in parameters.values():
        value.grad = None
    if loss.requires_grad:
        loss.backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in parameters.items()
    }


def assert_alike(ours, theirs):
    for name, value in theirs.items():
        close = 1e-3 * value.abs().max() + 1e-7
        assert (ours[name] - value).abs().max() <= close, name


@pytest.mark.parametrize("rows", [[*TEXTS, *ROWS], TEXTS], ids=["mixed", "text"])
@pytest.mark.parametrize("rung", RUNGS)
def test_a_step_gives_the_loss_and_gradients_of_the_plain_computation(rung, rows):
    _, model, parameters, section = trained(rung, cross_entropy=1, distill=0)
    student = Distillation(model, section)

    losses = student(batch_of(rows))
    ours = gradients(losses.total, parameters)
    student.each_alone = True
    alone = gradients(student(batch_of(rows)).total, parameters)
    plain = plain_loss(model, rows)

    torch.testing.assert_close(losses.cross_entropy, plain, rtol=1e-4, atol=1e-4)
    theirs = gradients(plain, parameters)
    assert_alike(ours, theirs)
    assert_alike(alone, theirs)
    assert any(value.any() for value in theirs.values()) == ("full" in rung or rows != TEXTS
                                                             or "early" in rung)  # fmt: skip


@pytest.mark.parametrize("rung", ["registers", "deep", "register-lora", "lora"])
def test_a_row_of_text_among_others_is_learnt_from_by_its_words_alone(rung):
    _, model, parameters, section = trained(rung, cross_entropy=1, distill=0)
    rows = [*TEXTS, *ROWS]

    losses = Distillation(model, section)(batch_of(rows))
    plain = plain_loss(model, rows)

    torch.testing.assert_close(losses.cross_entropy, plain, rtol=1e-4, atol=1e-4)
    assert_alike(gradients(losses.total, parameters), gradients(plain, parameters))


@pytest.mark.parametrize("rung", ["register-lora", "lora", "full+projector"])
def test_layers_computed_again_give_the_same_gradients(rung):
    found = []
    for checkpointing in (False, True):
        _, model, parameters, section = trained(rung, distill=0, checkpointing=checkpointing)
        batch = batch_of([*ROWS, *TEXTS])
        found.append(gradients(Distillation(model, section)(batch).total, parameters))
        assert not any("forward" in vars(layer) for layer in model.get_decoder().layers)

    assert_alike(*found)


@pytest.mark.parametrize("settings", [{"distill": 0.9}, {"distill": 0.9, "hidden": 0.8}])
def test_the_parts_of_a_step_add_up_to_it(settings):
    _, model, parameters, section = trained("register-lora", **settings)
    student = Distillation(model, section)
    whole = student(batch_of(ROWS))
    wanted = gradients(whole.total, parameters)

    parts = [batch_of(rows) for rows in (ROWS[:1], ROWS[1:])]  # of 2 and of 6 questions
    sizes = sum(student.sizes(part) for part in parts)
    losses = [student(part, sizes) for part in parts]
    summed = gradients(losses[0].total + losses[1].total, parameters)

    for name in whole._fields:
        together = getattr(losses[0], name) + getattr(losses[1], name)
        torch.testing.assert_close(together, getattr(whole, name), rtol=1e-5, atol=1e-6)
    assert_alike(summed, wanted)


def test_a_teacher_that_is_about_to_change_answers_before_and_is_never_asked_again(tmp_path):
    _, model, parameters, section = trained("full", distill=1, temperature=1, top_k=7)
    student = Distillation(model, section, TeacherCache({}, tmp_path))
    batch = batch_of([*ROWS, *TEXTS])

    with pytest.raises(VictorError, match=r"predictions .* are gone .*\n  fix: start again with"):
        student(batch)
    student(batch, ask=True)
    before = student(batch).distill
    encoded = encode(ROWS[0], tiny_processor())
    said = encoded.conversations[0]
    at = [n for n in range(len(said.labels) - 1) if said.labels[n + 1] != IGNORED]
    with torch.no_grad(), model.registers_off():
        logits = model(input_ids=torch.tensor([said.input_ids]), **encoded.images).logits[0, at]
    with torch.no_grad():
        for value in parameters.values():
            value.mul_(0.9)
    after = student(batch)

    assert (student.asked, student.seconds > 0) == (len(batch.keys), True)
    assert after.distill != before
    kept = student.known.find(batch.keys[:1])
    best = logits.log_softmax(-1).topk(7)
    assert torch.equal(kept.index, best.indices)
    torch.testing.assert_close(kept.log_probability, best.values, rtol=1e-4, atol=1e-4)
