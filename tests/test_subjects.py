"""What is measured is what was asked for, and as many prompts at once as fit.

Faults planted and caught: the layer of `convert` in place of the proportional one, the recipe's
registers in place of the model's, cache or weights left out of what is needed.
"""

from pathlib import Path

import pytest
import torch

from tests.victor_models import victor_folder, victor_llava
from victorctl import subjects
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe
from victorctl.subjects import subject

PICTURE = 480, 640
GIB = 2**30


def of_shape(*, run=None, **bench):
    bench = {"shape": "llava-1.5-7b", "layers": 8, "width_scale": 0.0625} | bench
    recipe = load_recipe(flags={f"bench.{name}": value for name, value in bench.items()})
    return subject(None, recipe, run or Run(device="cpu"), PICTURE)


def spelled(found):
    return {name: variant.name for name, variant in found.variants.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return victor_folder(tmp_path_factory.mktemp("model"), victor_llava(registers=3, drop_layer=2))


@pytest.mark.parametrize(("given", "said"), [(None, "neither"), (Path("model"), "both")])
def test_a_folder_or_a_shape_is_needed(given, said):
    recipe = load_recipe(flags={"bench.shape": given and "llava-1.5-7b"})
    with pytest.raises(VictorError, match=f"and got {said}\n  fix: victorctl bench FOLDER, or"):
        subject(given, recipe, Run(), PICTURE)


@pytest.mark.parametrize(
    ("scale", "said"), [(0.0001, "--width-scale 0.0001 is --width-scale 0.00781, as"), (0.06, "")]
)
def test_a_width_that_is_far_from_what_was_asked_for_is_said(capsys, scale, said):
    of_shape(width_scale=scale)
    shown = capsys.readouterr().err
    assert said in shown
    assert ("warning" in shown) is bool(said)


def test_a_folder_without_registers_is_refused(tmp_path):
    victor_folder(tmp_path, victor_llava())
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(VictorError, match="not a Victor model yet\n  fix: victorctl convert"):
        subject(tmp_path, load_recipe(), Run(), PICTURE)


def test_a_shape_has_its_proportions_and_registers_for_all_that_is_asked_of_it():
    found = of_shape(also=["16", "@2", "random", "32@2"])

    assert spelled(found) == {
        "model": "victor:8@1",  # 3 of 32 layers are 1 of 8
        "victor:16@1": "victor:16@1",
        "victor:8@2": "victor:8@2",
        "random:8@1": "random:8@1",
        "victor:32@2": "victor:32@2",
    }
    assert found.config.victor["registers"] == 32
    assert found.layers == 8
    assert "256/4096 of its widths" in found.said


def test_what_is_asked_for_twice_is_measured_once():
    assert list(of_shape(also=["8@1", "random", "random:8"]).variants) == ["model", "random:8@1"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"victor.registers": 4, "victor.drop_layer": 3}, "victor:4@3"),
        ({"victor.registers": 4, "bench.registers": 2, "bench.drop_layer": 5}, "victor:2@5"),
    ],
)
def test_a_recipe_says_what_a_shape_becomes_and_bench_beats_it(flags, expected):
    recipe = load_recipe(flags={"bench.shape": "llava-1.5-7b", "bench.layers": 8, **flags})
    assert spelled(subject(None, recipe, Run(), PICTURE)) == {"model": expected}


def test_a_folders_model_is_measured_as_it_is(folder):
    recipe = load_recipe(flags={"victor.registers": 1, "bench.also": ["2", "@4"]})
    found = subject(folder, recipe, Run(device="cpu"), PICTURE)

    assert spelled(found) == {
        "model": "victor:3@2", "victor:2@2": "victor:2@2", "victor:3@4": "victor:3@4",
    }  # fmt: skip
    assert (found.said, found.dtype) == (folder.name, torch.float32)
    assert found.load().victor.registers.count == 3


@pytest.mark.parametrize(
    ("bench", "problem"),
    [
        ({"registers": 4}, "victor:4@2: the model has 3 registers\n  fix: choose 1 to 3"),
        ({"also": ["4"]}, "victor:4@2: the model has 3 registers"),
        ({"drop_layer": 6}, "cannot leave at layer 6 of 6\n  fix: choose 1 to 5"),
    ],
)
def test_more_than_a_folders_model_has_is_refused(folder, bench, problem):
    recipe = load_recipe(flags={f"bench.{name}": value for name, value in bench.items()})
    with pytest.raises(VictorError, match=problem):
        subject(folder, recipe, Run(), PICTURE)


def test_random_weights_are_in_the_number_format_that_suits_the_device(monkeypatch):
    assert of_shape().dtype == torch.float32
    assert of_shape(run=Run(device="cpu", dtype="bf16")).dtype == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of_shape(run=Run(device="auto")).dtype == torch.bfloat16


def test_random_weights_are_drawn_as_asked():
    made = of_shape(layers=3, width_scale=0.01, run=Run(device="cpu", dtype="bf16", attn="eager"))
    model = made.load()

    assert type(model).__name__ == "VictorLlava"
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.config.text_config._attn_implementation == "eager"
    assert not model.training
    assert model.get_decoder().layers[0].mlp.up_proj.weight.std() > 0


def test_a_gpu_is_tried_with_the_papers_batch_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of_shape(run=Run(device="cuda")).batches() == [16, 8, 4, 2, 1]
    assert of_shape(run=Run(device="cuda"), batch_size=3).batches() == [3]


def test_what_weights_and_prompts_need_is_estimated():
    found = of_shape(layers=None, width_scale=1.0, run=Run(device="cpu", dtype="bf16"))
    weights, each = found._needed()

    # 7.06 billion parameters of two bytes; a prompt's cache is 768 tokens of 512 KiB, and what
    # passes between two layers at most 768 * (3 * 11008 + 6 * 4096) * 2 bytes; a third to spare.
    assert weights == pytest.approx(7.06e9 * 2, rel=0.01)
    assert each == pytest.approx(1.3 * (768 * 2**19 + 768 * 57600 * 2), rel=0.001)


def test_a_cpu_is_tried_with_what_should_fit_its_memory(monkeypatch):
    monkeypatch.setattr(subjects.Subject, "_needed", lambda _self: (13 * GIB, GIB))

    def batches(free, **bench):
        monkeypatch.setattr(subjects, "free_memory", lambda _device: free)
        return of_shape(**bench).batches()

    assert batches(64 * GIB) == [16, 8, 4, 2, 1]
    assert batches(25 * GIB) == [4, 2, 1]  # four fifths are 20: 13 + 7
    with pytest.raises(
        VictorError, match=r"about 14\.0 GiB of memory with the model, and 12\.0 GiB can be"
    ):
        batches(15 * GIB)
    assert batches(GIB, batch_size=64) == [64]  # who asks for more may know better
