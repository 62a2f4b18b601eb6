"""A model that lies elsewhere: on the disk, on another device, in shards, or as compiled code.

Faults planted and caught: a register's parameter read outside of its module; the class named as
sharding names it; hooks left out of what is compiled; parameters, updates, offsets or registers
left on their own device; a batch without an image that has no gradient for what is learned, or does
not call it.
"""

import copy
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import register_fsdp_forward_method

from tests.modeling import sharding
from tests.modeling.laws import assert_close
from tests.victor_models import (
    ALL,
    BATCH,
    answers,
    digests,
    inputs,
    labelled,
    logits,
    shared,
    victor_llava,
)
from victorctl.modeling_victor import Gate, LowRank, Offset, VictorLlava

# ---- Offloaded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [150_000, 250_000])
def test_what_does_not_fit_into_memory_stays_on_the_disk(memory, folder, tmp_path):
    # The model has 490 kB: of the smaller part, some layers before the drop are left out as well.
    whole = VictorLlava.from_pretrained(folder)

    model = VictorLlava.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path
    )

    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert "meta" in {parameter.device.type for parameter in model.victor.parameters()}
    assert torch.equal(logits(model), logits(whole))
    assert torch.equal(answers(model), answers(whole))
    with model.registers_off(), whole.registers_off():
        assert torch.equal(logits(model), logits(whole))


def test_weights_may_come_to_the_device_one_module_at_a_time(folder):
    whole = VictorLlava.from_pretrained(folder)

    model = accelerate.cpu_offload(copy.deepcopy(whole), execution_device="cpu")

    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(logits(model), logits(whole))
    assert torch.equal(answers(model), answers(whole))


# ---- On several devices --------------------------------------------------------------------------


@pytest.mark.parametrize("hooked", [False, True], ids=["parameters", "results too"])
@torch.no_grad()
def test_what_is_learned_comes_to_the_device_of_the_layer_that_it_acts_in(hooked):
    # Fake tensors hold no numbers, but they are as strict about devices as any, without a GPU.
    with FakeTensorMode():
        gate, hidden = Gate(), torch.empty(2, 5, 8, device="cuda")
        gate.rows = torch.tensor([1, 2, 3, 6, 7, 8])  # two images with three registers each
        layer = nn.Linear(8, 4, bias=False)
        layer.weight = nn.Parameter(torch.empty(4, 8, device="cuda"))
        for learned in (LowRank(layer, 2, 1.5, gate), Offset(layer, 3, 8, gate)):
            assert {part.device.type for part in learned.parameters()} == {"cpu"}
            if hooked:  # as `device_map` does: results stay where they were computed
                add_hook_to_module(learned, AlignDevicesHook(execution_device="cpu"))

        assert layer(hidden).device.type == "cuda"


@torch.no_grad()
def test_registers_come_to_the_device_of_the_embeddings():
    model = victor_llava(**ALL)
    expected = logits(model)

    def elsewhere(module, given, registers):  # all that can be done with them is to bring them
        return SimpleNamespace(to=lambda device: registers.to(device))

    model.victor.registers.register_forward_hook(elsewhere)

    assert torch.equal(logits(model), expected)


# ---- In shards -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """This process alone, as a group of one."""
    file = tmp_path_factory.mktemp("group") / "store"
    store = distributed.FileStore(str(file), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def step(model, optimizer):
    loss, logits = sharding.loss_and_logits(model, BATCH)
    loss.backward()
    gradients = {name: sharding.whole(each.grad) for name, each in model.named_parameters()}
    optimizer.step()
    optimizer.zero_grad()
    return logits, gradients


def same(one, other):
    return one is other if one is None else torch.equal(one, other)


# Since transformers 5.24 the native class, too, hands out the pictures' features: views of one.
@pytest.mark.filterwarnings(r"ignore:FSDP2-wrapped module \(FSDPVictorLlava\) returned a view")
@pytest.mark.parametrize("way", sharding.WAYS)
def test_a_model_in_shards_trains_and_is_saved_like_any_other(way, folder, mesh, tmp_path):
    plain = VictorLlava.from_pretrained(folder)
    model = sharding.sharded(plain, mesh, way=way)
    register_fsdp_forward_method(model, "generate")  # which does not begin with a forward
    assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())

    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (plain, model)]
    for _ in range(2):  # the second sees what the first has done
        expected = step(plain, optimizers[0])
        ours = step(model, optimizers[1])
        assert torch.equal(ours[0], expected[0])
        assert ours[1].keys() == expected[1].keys()
        assert all(map(same, ours[1].values(), expected[1].values()))
    assert torch.equal(answers(model), answers(plain))
    with model.registers_off(), plain.registers_off():
        assert torch.equal(logits(model), logits(plain))

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    model.save_pretrained(tmp_path / "ours", state_dict=state)
    plain.save_pretrained(tmp_path / "theirs")
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What came of a step on two processes, by what was sharded, what trained and what seen."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(sharding.train_as_one_of_two, (folder,), nprocs=2)
    return torch.load(folder / "found.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("way", "trained", "batches"), sharding.every_case())
def test_two_processes_train_as_one_that_sees_both_batches(two_processes, way, trained, batches):
    # Of the mixed ones the second has no image: its process has to answer for what it does not use.
    model = sharding.trainable(trained)
    for prompts in sharding.BATCHES[batches]:
        (sharding.loss_and_logits(model, prompts)[0] / 2).backward()

    gradients, after = two_processes[way, trained, batches]

    expected = sharding.take_step(model)
    assert expected[0].keys() <= gradients.keys()
    for name, ours in gradients.items():
        assert_close(ours, expected[0].get(name, torch.zeros_like(ours)), 1e-4)
        assert ours.any() or not name.startswith("victor.")
    assert after.keys() == expected[1].keys()
    for name, ours in after.items():
        assert_close(ours, expected[1][name], 1e-4)


# ---- Compiled ------------------------------------------------------------------------------------


@pytest.fixture
def small():
    """A model of two layers: compiling takes long."""
    config = copy.deepcopy(shared("llama", adapted=True).config)
    config.text_config.num_hidden_layers = 2
    config.vision_config.num_hidden_layers = 1
    config.victor = {**config.victor, "drop_layer": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = VictorLlava(config).eval()
        for parameter in model.victor.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of compiling, which is not ours
def test_a_compiled_model_computes_the_same_numbers_and_gradients(small):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of the whole process
    compiled = torch.compile(small, backend="eager")  # what is captured; the code is torch's
    batch = labelled(inputs("ab#cd", "#e#f"))

    def run(model):
        output = model(**batch)
        gradients = torch.autograd.grad(output.loss, list(small.victor.parameters()))
        return output.logits.detach(), *gradients

    for ours, expected in zip(run(compiled), run(small), strict=True):
        assert_close(ours, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was not passed over
    with small.registers_off():
        assert_close(compiled(**batch).logits, small(**batch).logits)
    assert_close(compiled(**batch).logits, small(**batch).logits)
