import json

import pytest
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_llava
from victorctl import conversion
from victorctl.conversion import check_files, default_drop_layer, make_plan
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe
from victorctl.sources import Source


def plan(folder, **flags):
    recipe = load_recipe(flags={key.replace("__", "."): value for key, value in flags.items()})
    return make_plan(Source(folder, folder.name, None), recipe)


def files(folder, **flags):
    return check_files(plan(folder, **flags), Run(out=folder.parent / "out"))


@pytest.fixture
def llava(tmp_path):
    """A model of 6 layers and 16 visual tokens."""
    return tiny_llava(tmp_path / "llava")


@pytest.mark.parametrize(
    ("layers", "drop_layer"),
    [(32, 3), (40, 4), (80, 8), (28, 3), (24, 2), (8, 2), (3, 2)],  # 2 instead of 0.75 and 0.28
)
def test_by_default_three_of_every_32_layers_see_the_picture_and_at_least_two(layers, drop_layer):
    assert default_drop_layer(layers) == drop_layer


def test_a_plan_has_every_setting_resolved(llava):
    made = plan(llava, victor__registers=4)
    assert (made.backbone, made.layers, made.width, made.visual_tokens) == ("llama", 6, 32, 16)
    assert made.settings == {
        "registers": 4,
        "drop_layer": 2,
        "positions": "overlay",
        "adapter": None,
    }
    assert made.recipe.victor.drop_layer == 2
    assert made.warnings == []


def test_depths_that_the_configuration_leaves_out_are_those_of_transformers(llava):
    config = json.loads((llava / "config.json").read_text())
    config["text_config"] = {"model_type": "llama", "vocab_size": 32064}  # as in llava-hf's own
    (llava / "config.json").write_text(json.dumps(config))
    made = plan(llava)
    assert (made.layers, made.width, made.recipe.victor.drop_layer) == (32, 4096, 3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"victor__drop_layer": 6},
            "--drop-layer 6: the text model of llava has 6 layers, .*\n  fix: choose 1 to 5",
        ),
        ({"victor__drop_layer": 99}, "--drop-layer 99: "),
        (
            {"victor__registers": 17},
            "--registers 17: an image of llava has 16 visual tokens to overlay\n  fix: choose 1 to",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(llava, flags, sentence):
    with pytest.raises(VictorError, match=sentence):
        plan(llava, **flags)


def test_the_last_settings_that_fit_are_taken(llava):
    assert plan(llava, victor__drop_layer=5, victor__registers=16).settings["drop_layer"] == 5
    assert plan(llava, victor__registers=17, victor__positions="append").settings["registers"] == 17


@pytest.mark.parametrize("count", [0, -1])
def test_no_registers_are_refused(count):
    with pytest.raises(VictorError, match=rf"--registers {count}: expected 1 or more"):
        load_recipe(flags={"victor.registers": count})


STAGE = {"command": "convert", "parent_sha256": "", "weights_sha256": "", "base_intact": True}


@pytest.mark.parametrize(
    ("stages", "fix"),
    [
        ([], "convert its base again"),
        ([STAGE | {"source": {"name": "llava-hf/llava"}}], "convert llava-hf/llava again"),
    ],
)
def test_a_victor_model_is_not_converted_again(llava, stages, fix):
    config = json.loads((llava / "config.json").read_text()) | {"victor": {"registers": 8}}
    (llava / "config.json").write_text(json.dumps(config))
    (llava / "victor.json").write_text(json.dumps({"schema": "x", "stages": stages}))
    with pytest.raises(VictorError, match=f"llava: a Victor model already\n  fix: train .* {fix}"):
        plan(llava)


def test_quantised_weights_are_refused(llava):
    config = json.loads((llava / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (llava / "config.json").write_text(json.dumps(config))
    with pytest.raises(VictorError, match=r"llava: its weights are quantised.*\n  fix: convert"):
        plan(llava)


def test_without_a_processor_registers_are_drawn_like_embeddings_and_it_is_said(llava):
    (llava / "processor_config.json").unlink()
    made = plan(llava)
    assert made.recipe.victor.init == "embeddings"
    assert len(made.warnings) == 2
    assert "llava has no processor" in made.warnings[0]
    assert len(plan(llava, victor__init="embeddings").warnings) == 1


def test_an_untried_text_model_that_is_not_verified_is_mentioned(tmp_path):
    folder = tiny_llava(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "glm"
    (folder / "config.json").write_text(json.dumps(config))
    assert plan(folder).warnings == []
    (warning,) = plan(folder, convert__verify="hash").warnings
    assert warning == "nobody tried to run glm in slices: --verify full would"


def test_every_shard_is_checked_before_anything_is_written(tmp_path):
    folder = tiny_llava(tmp_path / "llava", max_shard_size="100KB")
    found = files(folder)
    assert [path.name for path in found.paths] == [
        f"model-0000{index}-of-00004.safetensors" for index in (1, 2, 3, 4)
    ]
    assert found.dtype == "F32"
    assert found.size == sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    shard = folder / "model-00003-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(VictorError, match=r"model-00003-of-00004\.safetensors: truncated"):
        files(folder)
    shard.unlink()
    with pytest.raises(VictorError, match=r"llava: shard model-00003-of-00004\.safetensors is mis"):
        files(folder)


def test_a_tensor_that_the_index_promises_must_be_in_a_shard(tmp_path):
    folder = tiny_llava(tmp_path / "llava", max_shard_size="100KB")
    shard = folder / "model-00002-of-00004.safetensors"
    tensors = load_file(shard)
    name = min(tensors)
    save_file({other: tensors[other] for other in tensors if other != name}, shard)
    with pytest.raises(VictorError, match=f"llava: 1 tensors are in no shard, such as {name}"):
        files(folder)


@pytest.mark.parametrize(
    ("dtype", "cast"), [("auto", None), ("fp32", None), ("bf16", "BF16"), ("fp16", "F16")]
)
def test_only_another_number_format_is_a_cast(llava, dtype, cast):
    assert files(llava, convert__dtype=dtype).cast == cast


def test_a_cast_cannot_be_a_link(llava):
    assert files(llava, convert__dtype="fp32", convert__link=True).cast is None
    with pytest.raises(VictorError, match="--link --dtype bf16: a link cannot have another number"):
        files(llava, convert__dtype="bf16", convert__link=True)


def test_weights_without_numbers_are_refused(llava):
    save_file({}, llava / "model.safetensors")
    with pytest.raises(VictorError, match="llava: its weights hold no numbers"):
        files(llava)


def test_room_is_needed_for_copies_only(llava, monkeypatch):
    asked = []

    def note(_out, count, *, instead=""):
        asked.append((count, instead))

    monkeypatch.setattr(conversion, "check_space", note)
    size = files(llava).size
    files(llava, convert__link=True)
    files(llava, convert__dtype="bf16")
    monkeypatch.setattr(conversion, "on_one_disk", lambda _out, _files: False)
    files(llava)
    files(llava, convert__link=True)  # which can only copy there
    assert asked == [
        (size, ", or use --link"),
        (0, ""),
        (2 * size, ""),  # a cast to wider numbers may need twice the room
        (size, ""),
        (size, ""),
    ]
