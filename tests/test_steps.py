"""The steps that ours are measured against do the same, without a shortcut.

Faults planted and caught: the teacher with its registers on, features of another row, answers one
position late, padding attended to.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.tiny import tiny_model, tiny_processor, tiny_rows
from tests.victor_models import victor_llava
from victorctl.collation import collate
from victorctl.data.batches import IGNORED, encode
from victorctl.distill import Distillation
from victorctl.losses import likeliest
from victorctl.rungs import choose_parameters
from victorctl.sections import TrainSection
from victorctl.steps import Trainee, answer_loss, naive_loss

SETTINGS = TrainSection(cross_entropy=0.7, distill=0.9, temperature=2.0, top_k=5, rank=3)
LATER = {"role": "system", "content": [{"type": "text", "text": "look"}]}  # before its picture
ROWS = tiny_rows(4, questions=2)
ROWS[1] = replace(
    ROWS[1],
    conversations=tuple(
        replace(said, messages=(LATER, *said.messages)) for said in ROWS[1].conversations
    ),
)


def batch_of(rows=ROWS):
    return collate([encode(row, tiny_processor()) for row in rows], 0)


def trained(dtype):
    torch.manual_seed(2)
    model = victor_llava().to(dtype)
    parameters = choose_parameters(model, SETTINGS)
    for name, value in parameters.items():
        if "up" in name:
            torch.nn.init.normal_(value, std=0.3)
    return model, parameters


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 4e-7), (torch.float32, 1e-5)])
def test_the_naive_step_has_the_loss_and_the_gradients_of_ours(dtype, rounding):
    model, parameters = trained(dtype)

    ours = Distillation(model, SETTINGS)(batch_of()).total
    ours.backward()
    gradients = {name: value.grad.clone() for name, value in parameters.items()}
    model.zero_grad()
    naive = naive_loss(model, SETTINGS, batch_of())
    naive.backward()

    torch.testing.assert_close(naive, ours, rtol=rounding, atol=0)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, value in parameters.items():
        assert (gradients[name] - value.grad).abs().max() <= rounding * largest, name
    assert {name for name, value in model.named_parameters() if value.grad is not None} == {
        *parameters
    }


def test_the_unconverted_model_is_taught_the_answers_and_each_picture_is_seen_once(monkeypatch):
    native, processor = tiny_model(), tiny_processor()
    losses = []
    for row in ROWS:
        encoded = encode(row, processor)
        for said in encoded.conversations:
            labels = torch.tensor(said.labels)
            logits = native(input_ids=torch.tensor([said.input_ids]), **encoded.images).logits[0]
            at = (labels[1:] != IGNORED).nonzero()[:, 0]
            losses.append(functional.cross_entropy(logits[at], labels[at + 1], reduction="none"))
    seen, look = [], native.get_image_features
    monkeypatch.setattr(
        native,
        "get_image_features",
        lambda pixel_values, **given: (
            seen.append(len(pixel_values)) or look(pixel_values=pixel_values, **given)
        ),
    )

    torch.testing.assert_close(answer_loss(native, batch_of()), torch.cat(losses).mean())
    assert seen == [4]


def test_a_step_moves_the_parameters_by_a_clipped_gradient_and_forgets_it():
    # gradient (3, 4), of length 5, cut to length 1 and taken away at rate 0.5
    value = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    trainee = Trainee([value], torch.optim.SGD([value], lr=0.5), clip=1.0)

    trainee.step(lambda: (value * torch.tensor([3.0, 4.0])).sum())

    assert value.tolist() == pytest.approx([1 - 0.5 * 0.6, 1 - 0.5 * 0.8], abs=1e-5)
    assert value.grad is None


def test_the_likeliest_classes_are_kept_with_their_probability_among_all():
    # at temperature 2 the odds 1 : 4 : 16 become 1 : 2 : 4
    logits = torch.tensor([[1.0, 16.0, 4.0]]).log()
    kept = likeliest(logits, TrainSection(temperature=2.0, top_k=2))

    assert kept.index.tolist() == [[1, 2]]
    assert kept.log_probability.exp()[0].tolist() == pytest.approx([4 / 7, 2 / 7])
