import json

import pytest
import torch
from safetensors.torch import load_file

from tests import families
from tests.hub import serving
from tests.processors import CASES, PROCESSORS, tiny_family
from tests.tiny import tiny_llava, tiny_model, tiny_picture
from victorctl import checkpoint, parity
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.features import noise, see
from victorctl.inspect import inspect as look
from victorctl.recipe import Run, load_recipe


@pytest.fixture
def llava(tmp_path):
    """A model of 6 layers, 32 wide, with 16 visual tokens."""
    return tiny_llava(tmp_path / "llava", max_shard_size="100KB", dtype=torch.bfloat16)


@pytest.fixture
def victor(llava, tmp_path):
    flags = {"victor.registers": 4, "victor.drop_layer": 3, "convert.verify": "none"}
    recipe = load_recipe(flags=flags | {"victor.init": "embeddings"})
    convert(str(llava), recipe=recipe, run=Run(out=tmp_path / "victor", quiet=True))
    return tmp_path / "victor"


@pytest.fixture(autouse=True)
def no_weights_are_loaded(monkeypatch):
    for place, name in ((checkpoint, "load"), (parity, "native_model")):
        monkeypatch.setattr(place, name, lambda *_args, **_more: pytest.fail("loaded"))


def test_tells_what_a_model_is_and_what_victor_would_make_of_it(llava):
    tensors = [
        tensor for file in llava.glob("*.safetensors") for tensor in load_file(file).values()
    ]
    assert len(list(llava.glob("*.safetensors"))) > 1

    found = look(str(llava))

    assert found.pop("estimate")["registers"] == 8  # the recipe's default
    assert found == {
        "source": "llava",
        "family": "llava",
        "layout": "hf",
        "backbone": "llama",
        "layers": 6,
        "hidden_size": 32,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "dtype": "bfloat16",
        "visual_tokens": 16,
        "victor": None,
    }


def test_the_estimate_is_that_of_the_folders_own_settings(victor):
    found = look(str(victor))["estimate"]
    assert (found["registers"], found["drop_layer"], found["text_tokens"]) == (4, 3, 64)
    # 3 of 6 layers see 16 + 4 tokens, 3 see 4; with 64 of text 84 and 68, the base 80 in each
    assert found["mean_visual_tokens"] == 12
    assert found["cache_ratio"] == pytest.approx((3 * 84 + 3 * 68) / (6 * 80))

    # a layer: 32 x (2 x 32 for q and o + 2 x 16 for k and v + 3 x 64) weights, 4 x 32 x n^2 scores
    def flops(*tokens):
        return sum(2 * 32 * 288 * n + 4 * 32 * n * n for n in tokens) + 2 * 32 * 95

    ours, base = flops(84, 84, 84, 68, 68, 68), flops(*[80] * 6)
    assert found["flops_ratio"] == pytest.approx(ours / base)


def test_a_recipes_training_is_estimated_without_weights(llava):
    for file in llava.glob("model*"):
        file.unlink()
    recipe = load_recipe(flags={"victor.registers": 5, "train.rung": "registers"})

    found = look(str(llava), recipe=recipe)

    assert found["parameters"] is None
    assert found["estimate"]["registers"] == 5
    numbers = tiny_model().num_parameters()
    assert found["training"]["memory_bytes"]["weights"] == 2 * numbers + 4 * 5 * 32
    assert all(one["fits"] for one in found["training"]["machines"])
    assert "training" not in look(str(llava))


def test_training_is_not_estimated_where_visual_tokens_are_not_known(tmp_path):
    families.tiny_family("mistral3").save_pretrained(tmp_path / "model")

    with pytest.raises(VictorError, match="model: only its processor knows how many visual tokens"):
        look(str(tmp_path / "model"), recipe=load_recipe())


def test_low_rank_updates_cost_something(victor):
    before = look(str(victor))["estimate"]["flops_ratio"]
    config = json.loads((victor / "config.json").read_text())
    ratios = []
    for layers in ("early", "all"):
        config["victor"]["adapter"] = {"rank": 4, "alpha": 4, "layers": layers}
        (victor / "config.json").write_text(json.dumps(config))
        ratios.append(look(str(victor))["estimate"]["flops_ratio"])
    assert ratios[1] - before == pytest.approx(2 * (ratios[0] - before))  # 3 of 6 layers, or all
    assert ratios[0] > before


def test_of_a_victor_model_it_tells_settings_and_lineage(llava, victor):
    found = look(str(victor))
    assert found["layout"] == "victor"
    assert found["parameters"] == look(str(llava))["parameters"]  # registers are counted apart
    settings = {"registers": 4, "drop_layer": 3, "positions": "overlay", "adapter": None}
    assert {name: found["victor"][name] for name in settings} == settings
    assert found["victor"]["parameters"] == 4 * 32
    assert found["victor"]["base_intact"] is True
    assert found["victor"]["code_current"] is True
    assert [stage["command"] for stage in found["victor"]["lineage"]] == ["convert"]

    (victor / "modeling_victor.py").write_text("older")
    assert look(str(victor))["victor"]["code_current"] is False


def test_a_hub_id_is_inspected_without_its_weights(llava, tmp_path, monkeypatch):
    expected = look(str(llava))
    with serving(monkeypatch, tmp_path / "cache", {"ada/llava": llava}):
        found = look("ada/llava")
    assert found == expected | {"source": "ada/llava"}
    cached = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert "config.json" in cached
    assert not [name for name in cached if name.endswith(".safetensors")]


def test_a_damaged_shard_is_named(llava):
    shard = llava / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(VictorError, match=r"model-00002-of-00002\.safetensors: truncated"):
        look(str(llava))


def test_what_is_no_llava_is_refused(llava):
    (llava / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        VictorError, match="llava: a model of type bert is of no family that can be converted"
    ):
        look(str(llava))


@pytest.mark.parametrize(("picture", "tokens"), [((32, 32), 36), ((30, 60), 52), ((64, 40), 72)])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_counts_the_tokens_of_a_picture_of_any_size_as_the_model_makes_them(
    tmp_path, name, picture, tokens
):
    model = families.tiny_family(name)
    model.save_pretrained(tmp_path / "model")

    with torch.no_grad():
        seen = see(model, noise(model, picture)).pooler_output
    found = look(str(tmp_path / "model"), picture=picture)

    assert found["visual_tokens"] == sum(len(part) for part in seen) == tokens
    assert found["estimate"]["mean_visual_tokens"] == ((tokens + 8) * 2 + 8 * 4) / 6


def test_says_nothing_of_tokens_that_only_a_processor_knows(tmp_path):
    families.tiny_family("mistral3").save_pretrained(tmp_path / "model")

    found = look(str(tmp_path / "model"))

    assert found["visual_tokens"] is found["estimate"] is None


@pytest.mark.parametrize("name", CASES)
def test_counts_what_a_processor_makes_of_a_picture_without_the_words_around_it(tmp_path, name):
    tiny_family(name).save_pretrained(tmp_path / "model")
    processor = PROCESSORS[name]()
    processor.save_pretrained(tmp_path / "model")

    for picture in ((32, 32), (70, 40), (30, 90)):
        drawn = [tiny_picture(0, picture[::-1])]
        ids = processor(images=drawn, text=[processor.image_token])["input_ids"]
        found = look(str(tmp_path / "model"), picture=picture)
        assert found["visual_tokens"] == list(ids[0]).count(processor.image_token_id) > 0


def test_a_victor_model_without_its_registers_is_not_whole(victor):
    (victor / "victor.safetensors").unlink()

    with pytest.raises(VictorError, match=r"victor.safetensors: no such file"):
        look(str(victor))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("vision_config", {"patch_size": 0}),
        ("vision_config", {"image_size": -112}),
        ("text_config", {"hidden_size": -64}),
        ("text_config", {"num_hidden_layers": 0}),
        (None, {"image_token_index": 99_999}),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(llava, part, changes):
    file = llava / "config.json"
    content = json.loads(file.read_text())
    (content[part] if part else content).update(changes)
    file.write_text(json.dumps(content))
    with pytest.raises(VictorError, match=r"llava: config.json"):
        look(str(llava))
