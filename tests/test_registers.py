import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_llava, tiny_model
from victorctl.conversion import check_files, make_plan
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe
from victorctl.registers import draw_registers, moments
from victorctl.sources import Source


def draw(folder, *, visual=(), **flags):
    flags = {f"victor.{key}": value for key, value in flags.items()}
    seed = flags.pop("victor.seed", None)
    recipe = load_recipe(flags={**flags, "seed": seed, "victor.positions": "append"})
    plan = make_plan(Source(folder, folder.name, None), recipe)
    return draw_registers(plan, check_files(plan, Run(out=folder.parent / "out")), list(visual))


def test_mean_and_deviation_are_those_of_all_rows_together_column_by_column():
    # columns 1 2 3 and 0 0 6: means 2 and 2; deviations sqrt(2/3) and sqrt(8)
    parts = [np.float32([[1, 0], [2, 0]]), np.float32([[3, 6]])]
    mean, deviation = moments(parts)
    assert mean.tolist() == [2, 2]
    assert deviation == pytest.approx([(2 / 3) ** 0.5, 8**0.5])


def test_constant_columns_have_no_deviation_however_large():
    mean, deviation = moments([np.full((1000, 1), 4096.1, np.float32)])
    assert mean == pytest.approx([4096.1])
    assert deviation == pytest.approx([0], abs=0.01)


def test_registers_are_drawn_like_token_embeddings(tmp_path):
    folder = tiny_llava(tmp_path / "llava")
    tensors = load_file(folder / "model.safetensors")
    embeddings = tensors["language_model.model.embed_tokens.weight"]
    embeddings[:, 3] = 5 + embeddings[:, 3] / 100  # a dimension unlike the others
    save_file(tensors, folder / "model.safetensors")

    registers = draw(folder, init="embeddings", registers=4000)

    assert registers.shape == (4000, 32)
    assert registers.dtype == torch.float32
    assert registers.mean(0).numpy() == pytest.approx(embeddings.mean(0).numpy(), abs=0.05)
    assert registers.std(0).numpy() == pytest.approx(embeddings.std(0).numpy(), rel=0.05)


@pytest.mark.parametrize("text", ["gemma", "gemma2", "gemma3_text"])
def test_embeddings_that_the_model_scales_are_scaled_before_registers_are_drawn(tmp_path, text):
    folder = tmp_path / "llava"
    model = tiny_model(text=text, layers=3)
    model.save_pretrained(folder)
    entering = model.get_input_embeddings()(torch.arange(90)).detach()  # sqrt(32) times the weights

    registers = draw(folder, init="embeddings", registers=4000)

    assert registers.std(0).mean() == pytest.approx(entering.std(0).mean().item(), rel=0.05)


def test_registers_are_drawn_like_visual_tokens(tmp_path):
    folder = tiny_llava(tmp_path / "llava")
    visual = np.random.default_rng(0).normal(size=(100, 32)) * np.arange(32) + 7

    registers = draw(folder, init="visual", registers=4000, visual=np.split(visual, 4))

    assert registers.mean(0).numpy() == pytest.approx(visual.mean(0), abs=1.5)
    assert registers.std(0).numpy() == pytest.approx(visual.std(0), rel=0.05)


def test_the_seed_decides(tmp_path):
    folder = tiny_llava(tmp_path / "llava")
    one = draw(folder, init="embeddings", registers=4, seed=1)
    assert torch.equal(one, draw(folder, init="embeddings", registers=4, seed=1))
    assert not torch.equal(one, draw(folder, init="embeddings", registers=4, seed=2))


def test_says_that_it_finds_no_token_embeddings(tmp_path):
    folder = tiny_llava(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    sentence = r"llava: no token embeddings .*embed_tokens\.weight, 48 wide\)\n  fix: use --init vi"
    with pytest.raises(VictorError, match=sentence):
        draw(folder, init="embeddings")
