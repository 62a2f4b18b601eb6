"""What has no translation is refused by name, and nothing is written."""

import json

import pytest

from tests import originals
from tests.converting import QUICK, refused, run
from tests.hostile import HOSTILE
from tests.tiny import tiny_llava
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe


def change(folder, **more):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | more
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"mm_projector_type": "linear"},
            "llava: mm_projector_type 'linear', and .* only mlp2x_gelu",
        ),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity'"),
        ({"mm_projector_type": None}, r"mm_projector_type None, .* \(None means linear"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True: a picture stands between two"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type 'qformer': transformers has no"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls' is neither"),
        ({"mm_vision_select_layer": [-2, -5]}, "mm_vision_select_layer .-2, -5. is not one layer"),
        (
            {"mm_hidden_size": 64},
            "llava: mm_hidden_size 64, and its vision tower is 32 wide\n  fix: add",
        ),
        (
            {"mm_vision_tower": "eva"},
            "mm_vision_tower 'eva' is none of .*\n  fix: add --vision-tower",
        ),
        ({"mm_newline_position": "grid"}, "mm_newline_position 'grid': lines of a video end as in"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode 'average', and .* bilinear"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride 4, and .* by 2 alone"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "its language model is MPT"),
        ({"model_type": "llava_mpt"}, "its language model is MPT"),
        (
            {"architectures": ["LlavaOlmoForCausalLM"]},
            r"its language model, Olmo, .*\(gemma, llama,",
        ),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"hidden_size": "wide"}, "hidden_size 'wide' is no count"),
        (
            {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"},
            "mm_patch_merge_type 'spatial', and transformers has only spatial_unpad",
        ),
        (
            {"image_aspect_ratio": "highres_anyres", "mm_patch_merge_type": "spatial_unpad"},
            "image_aspect_ratio 'highres_anyres' is none of pad, anyres",
        ),
        (
            {
                "image_aspect_ratio": "anyres",
                "mm_patch_merge_type": "spatial_unpad",
                "image_grid_pinpoints": "all",
            },
            "image_grid_pinpoints 'all' is no list of sizes",
        ),
    ],
)
def test_what_transformers_has_no_class_for_is_refused_by_name(llava, more, sentence):
    change(llava, **more)
    assert refused(llava, sentence).fix


def test_what_it_says_of_videos_is_no_obstacle_where_transformers_does_the_same(llava):
    same = {"mm_newline_position": "one_token", "mm_spatial_pool_mode": "bilinear"}
    change(llava, **same, mm_spatial_pool_stride=2)
    run(llava, llava.parent / "out", dry_run=True)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"architectures": 5}, "config.json: architectures 5 is no list of names"),
        ({"architectures": {"a": 1}}, "architectures {'a': 1} is no list"),
        ({"num_attention_heads": "x"}, "llava: config.json: transformers cannot read it"),
        ({"num_attention_heads": 0}, "transformers cannot read it"),
        ({"rope_scaling": "x"}, "transformers cannot read it"),
        ({"rope_theta": "x"}, "rope_theta 'x' is no number"),
        ({"vocab_size": True}, "vocab_size True is no count"),
        ({"tokenizer_model_max_length": "x"}, "tokenizer_model_max_length 'x' is no count"),
    ],
)
def test_a_configuration_of_no_use_is_refused(llava, more, sentence):
    change(llava, **more)
    assert refused(llava, sentence).fix


@pytest.mark.parametrize(
    "name", ["no config", "config cut", "config of bytes", "config a list", "generation cut"]
)
def test_damaged_small_files_are_refused_as_in_any_layout(tmp_path, model, name):
    twist, sentence = HOSTILE[name]
    source = originals.write_original(tmp_path / "llava", model, shards=2)
    twist(source)
    refused(source, sentence)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "image_size", "patch_size", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [0, "x"])
def test_a_tower_of_no_size_is_refused(tmp_path, model, key, value):
    source = originals.write_original(tmp_path / "llava", model, tower=False)
    tower = originals.write_tower(tmp_path / "clip", model)
    config = json.loads((tower / "config.json").read_text())
    config["vision_config"][key] = value
    (tower / "config.json").write_text(json.dumps(config))
    sentence = f"{key} {value!r} is no count|transformers cannot read it|{key} {value}, and open"
    refused(source, sentence, **{"convert.vision_tower": str(tower)})


@pytest.mark.parametrize("name", ["LLaVA-7b-delta-v0", "llava_13b_delta"])
def test_a_delta_is_no_model(tmp_path, model, name):
    source = originals.write_original(tmp_path / name, model)
    refused(source, f"{name}: a delta, the difference to LLaMA's weights")
    source.rename(tmp_path / "deltanet")
    run(tmp_path / "deltanet", tmp_path / "out", dry_run=True)


def test_a_tower_of_another_kind_is_refused(llava, tmp_path):
    other = tiny_llava(tmp_path / "other")
    sentence = "--vision-tower other: a model of type llava\n  fix: give the CLIP or SigLIP"
    refused(llava, sentence, **{"convert.vision_tower": str(other)})


def test_a_model_without_vision_weights_asks_for_them(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, tower=False)
    refused(source, "hold no vision tower; it was trained with openai/tiny-clip\n  fix: add --vis")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 2), ("image_size", 56), ("num_attention_heads", 8)],
)
def test_a_tower_unlike_the_one_that_the_model_was_trained_with_is_refused(
    tmp_path, model, key, value
):
    source = originals.write_original(tmp_path / "llava", model, tower=False)
    tower = originals.write_tower(tmp_path / "clip", model)
    config = json.loads((tower / "config.json").read_text())
    wanted = config["vision_config"][key]
    config["vision_config"][key] = value
    (tower / "config.json").write_text(json.dumps(config))
    sentence = f"--vision-tower clip: {key} {value}, and openai/tiny-clip, .* has {wanted}"
    refused(source, sentence, **{"convert.vision_tower": str(tower)})


def test_layers_of_a_tower_are_not_left_out(tmp_path, model):
    source = originals.write_original(tmp_path / "llava", model, mm_vision_tower="my/clip")
    tower = originals.write_tower(tmp_path / "clip", model)
    config = json.loads((tower / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] -= 1
    (tower / "config.json").write_text(json.dumps(config))
    sentence = "tensor vision_tower.vision_model.encoder.layers.2.* is too many"
    refused(source, sentence, **{"convert.vision_tower": str(tower)})


def test_tiles_without_ends_of_rows_are_refused(llava):
    change(llava, image_aspect_ratio="anyres", mm_patch_merge_type="flat")
    refused(llava, "mm_patch_merge_type 'flat', and transformers has only spatial_unpad")


def test_tiles_are_not_padded_once_more(tmp_path):
    source = originals.write_original(tmp_path / "llava", originals.native("next"), "next")
    refused(source, "--image-aspect pad: llava cuts pictures", **{"convert.image_aspect": "pad"})


def test_weights_that_are_written_anew_cannot_be_linked(llava):
    refused(llava, "--link: the weights of llava are in LLaVA's original", **{"convert.link": True})


def test_a_model_without_a_tokenizer_is_refused(llava):
    for file in llava.glob("tokenizer*"):
        file.unlink()
    refused(llava, "no tokenizer that transformers can load\n  fix: copy the language model's")
    (llava / "tokenizer.model").write_bytes(b"no model")
    sentence = (
        r"transformers cannot load its tokenizer \(.+\)\n  fix: copy the language model's .* anew"
    )
    refused(llava, sentence)


def test_other_commands_send_an_original_to_convert(llava):
    from victorctl.checkpoint import load

    with pytest.raises(
        VictorError, match=r"LLaVA's original layout, .*\n  fix: victorctl convert "
    ):
        load(llava)


def test_an_original_is_no_base_to_compare_with(llava, tmp_path):
    from victorctl.evaluate import evaluate

    run(llava, tmp_path / "out")
    with pytest.raises(VictorError, match="llava: this is LLaVA's original layout"):
        evaluate(
            tmp_path / "out",
            recipe=load_recipe(flags={"eval.data": "demo:test", "eval.limit": 1}),
            run=Run(base=str(llava), quiet=True, device="cpu"),
        )


@pytest.mark.parametrize("key", ["base", "vision_tower"])
def test_a_model_in_transformers_layout_takes_no_parts(tmp_path, key):
    llava = tiny_llava(tmp_path / "llava")
    word = key.replace("_", "-")
    with pytest.raises(
        VictorError, match=f"--{word} x: llava is whole as it is\n  fix: leave --{word}"
    ):
        run(llava, tmp_path / "out", flags=QUICK | {f"convert.{key}": "x"})
