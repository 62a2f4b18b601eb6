"""One training step of families whose pictures are not one run of placeholders, or of any size.

Faults planted and caught: the shared prefix ends with the picture and not with its first run; the
features of a row's pictures are shared out by pictures and not by tokens; pictures with nothing
between them do not share their run; any processor is asked as LLaVA's is.
"""

import copy

import pytest
import torch
from torch import nn

from tests.processors import CASES, PROCESSORS, tiny_family
from tests.test_distill import plain_losses
from tests.tiny import tiny_picture, tiny_rows
from victorctl import modeling_victor
from victorctl.collation import collate
from victorctl.data.batches import encode
from victorctl.distill import Distillation
from victorctl.families import FAMILIES
from victorctl.questions import prepare, questions
from victorctl.rungs import choose_parameters
from victorctl.sections import TrainSection

SIZES = ((32, 32), (70, 40), (30, 90))  # width and height, in turn


@pytest.fixture(params=CASES)
def case(request):
    """A family's native model, a Victor model around the same weights, and their processor."""
    native = tiny_family(request.param)
    (family,) = (each for each in FAMILIES if each.model_type == request.param)
    config = copy.deepcopy(native.config)
    settings = {"registers": 3, "drop_layer": 2, "positions": "overlay", "adapter": None}
    config.victor = settings
    torch.manual_seed(3)
    model = getattr(modeling_victor, family.ours)(config).eval()
    nn.init.normal_(model.victor.registers.weight, std=0.4)
    model.load_state_dict(model.state_dict() | native.state_dict())
    return native, model, PROCESSORS[request.param]()


def rows():
    made = tiny_rows(4, questions=2, images=(1, 2))
    for number, row in enumerate(made):
        pictures = [tiny_picture(number, SIZES[(number + n) % 3]) for n in range(len(row.images))]
        object.__setattr__(row, "images", tuple(pictures))
    return made


def test_the_shared_prefix_gives_the_losses_and_gradients_of_the_plain_step(case):
    native, model, processor = case
    section = TrainSection(rung="registers", cross_entropy=0.7, distill=0.9, top_k=10_000)
    parameters = choose_parameters(model, section)
    by_runs = "image" in model.by_runs
    encoded = [encode(row, processor, by_runs=by_runs) for row in rows()]

    losses = Distillation(model, section)(collate(encoded, 0))
    losses.total.backward()
    ours = {name: value.grad.clone() for name, value in parameters.items()}
    model.zero_grad()
    cross, kl, _ = plain_losses(model, native, rows(), processor, 1.0)
    (0.7 * cross + 0.9 * kl).backward()

    torch.testing.assert_close(losses.cross_entropy, cross, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.distill, kl, rtol=1e-4, atol=1e-4)
    for name, value in parameters.items():
        assert (ours[name] - value.grad).abs().max() <= 1e-3 * value.grad.abs().max(), name


@torch.no_grad()
def test_seen_once_or_question_by_question_the_pictures_are_the_same(case):
    native, model, processor = case
    made = prepare(questions(rows(), None), processor, pictures=True)

    for one in (native, model):
        logits = [one(**given(one)).logits[:, -1] for given in (made.for_model, made.seen_by)]
        assert (logits[0] - logits[1]).abs().max() < 1e-4
    visual = (made.text["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert [size.visual for size in made.sizes] == visual
    assert len(set(visual)) >= 2  # of one picture and of two, if not of every size


@torch.no_grad()
def test_prompts_are_what_the_processor_makes_of_the_whole_chat(case):
    native, model, processor = case
    for row in (rows()[0], rows()[3]):  # one picture; two, of one number of tiles for PerceptionLM
        said, pictures = row.conversations[0].messages[:-1], row.pictures()
        text = processor.apply_chat_template(said, add_generation_prompt=True)
        nested = [pictures] if "GotOcr2" not in type(processor).__name__ else pictures
        whole = processor(images=nested, text=[text], return_tensors="pt")
        (asked, *_) = questions([row], None)
        made = prepare([asked], processor, pictures=True)

        assert torch.equal(made.text["input_ids"], whole["input_ids"])
        for one in (native, model):
            logits = [one(**given).logits for given in (whole, made.for_model(one))]
            assert torch.equal(*logits)
