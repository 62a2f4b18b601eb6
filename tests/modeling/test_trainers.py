"""Trainers that know nothing of Victor train its registers, and save a folder that loads.

Faults planted and caught: the inner model is the unconverted one; arguments of the loss are not
passed on; a base alone is put into the model where the registers are asked for as well.
"""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

from tests.modeling.laws import assert_close
from tests.tiny import tiny_rows
from tests.victor_models import inputs, labelled, logits, pictures, shared_native, victor_llava
from victorctl.modeling_victor import VictorLlava

ROWS = (("ab#cd", 0), ("#efg", 1), ("a#bcde", 2), ("#a#b", 3))  # and its first picture's number


@pytest.fixture
def model(folder):
    """What a user gets who only has the folder."""
    return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)


def collated(rows):
    batch = inputs(*(prompt for prompt, _ in rows), side="right")
    batch["pixel_values"] = torch.cat(
        [pictures(prompt.count("#"), first) for prompt, first in rows]
    )
    return labelled(batch)


@torch.no_grad()
def loss(model):
    return float(model.eval()(**collated(ROWS)).loss)


def freeze_base(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("victor."))


def trainer(model, folder, **how):
    how = {"max_steps": 10, "per_device_train_batch_size": 2, "learning_rate": 1e-2} | how
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    settings = TrainingArguments(folder, remove_unused_columns=False, **(quiet | how))
    return Trainer(model=model, args=settings, train_dataset=ROWS * 8, data_collator=collated)


@pytest.mark.parametrize(
    ("frozen", "checkpointing"), [(True, False), (False, True)], ids=["frozen", "free"]
)
def test_trainer_trains_and_saves_a_folder_that_loads(
    frozen, checkpointing, model, folder, tmp_path
):
    if frozen:
        freeze_base(model)
    before, first = copy.deepcopy(model.state_dict()), loss(model)
    training = trainer(model, tmp_path, activation_checkpointing=checkpointing)

    training.train()
    training.save_model(tmp_path / "saved")

    assert loss(model) < first
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    victors = {name for name in before if name.startswith("victor.")}
    assert victors <= moved
    assert (moved == victors) == frozen
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(logits(loaded), logits(model))
    if frozen:
        same = (tmp_path / "saved/model.safetensors", folder / "model.safetensors")
        assert same[0].read_bytes() == same[1].read_bytes()


def test_steps_in_parts_are_whole_steps(folder, tmp_path):
    # The rows have 3, 3, 4 and 2 tokens to guess: a mean of means would weigh them otherwise.
    models = [VictorLlava.from_pretrained(folder) for _ in range(2)]
    for size, model in zip((4, 1), models, strict=True):
        parts = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        how = {"optim": "sgd", "learning_rate": 1, "train_sampling_strategy": "sequential"}
        trainer(model, tmp_path, max_steps=1, **parts, **how).train()

    whole, parts = models
    before = VictorLlava.from_pretrained(folder).victor.state_dict()
    for name, one in whole.victor.named_parameters():
        moved = one - before[name]
        assert moved.any()
        assert_close(parts.victor.get_parameter(name) - before[name], moved, 1e-4)


@pytest.mark.parametrize("size", ["1GB", "60KB"])
def test_trainer_does_not_resume_without_the_registers(size, model, tmp_path):
    freeze_base(model)
    trainer(model, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    model.save_pretrained(tmp_path / "checkpoint-1", max_shard_size=size)

    with pytest.raises(ValueError, match=r"base without its registers.*\n  fix: from_pretrained"):
        trainer(model, tmp_path).train(resume_from_checkpoint=True)


def test_a_base_under_the_hubs_names_is_not_enough_either():
    state = shared_native(text="llama").state_dict()
    names = {name: name.replace("model.language_model", "language_model.model") for name in state}

    with pytest.raises(ValueError, match="base without its registers"):
        victor_llava().load_state_dict({names[name]: state[name] for name in state}, strict=False)


def test_a_whole_checkpoint_and_a_strict_base_are_loaded_by_name():
    model = victor_llava()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    assert not model.load_state_dict(state, strict=False).missing_keys
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())

    with pytest.raises(RuntimeError, match=r"Missing key.*victor\.registers\.weight"):
        model.load_state_dict(shared_native(text="llama").state_dict())


# ---- TRL -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing`:FutureWarning")  # TRL asks so
def test_trls_sft_trainer_trains_the_registers_on_messages_and_images(model, folder, tmp_path):
    trl = pytest.importorskip("trl", reason="needs trl: pip install '.[ecosystem]'")
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install '.[ecosystem]'")
    data = [
        {"images": list(row.images), "messages": plain(row.conversations[0])}
        for row in tiny_rows(4, questions=1)
    ]
    freeze_base(model)
    before = copy.deepcopy(model.state_dict())
    settings = trl.SFTConfig(
        tmp_path,
        max_steps=10,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    training = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    batch = next(iter(training.get_train_dataloader()))
    own = float(VictorLlava.from_pretrained(folder)(**batch).loss.detach())

    training.train()
    training.save_model(tmp_path / "saved")

    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(own, rel=1e-4)  # TRL computes it from the inner model
    assert losses[-1] < losses[0]
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {name for name in before if name.startswith("victor.")}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(logits(loaded), logits(model))


def plain(conversation):
    """Say a conversation as TRL's users do: contents are strings, the picture's place unsaid."""
    return [
        {"role": message["role"], "content": message["content"][-1]["text"]}
        for message in conversation.messages
    ]
