"""A model is loaded by its own code if that is ours, and its base is found or asked for."""

import dataclasses
import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_llava, tiny_picture, tiny_processor
from victorctl import checkpoint, lineage
from victorctl.contestants import enter, find_base, load_shipped
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.methods import FLOOR
from victorctl.modeling_victor import VictorLlava
from victorctl.recipe import Run, load_recipe

QUIET = Run(device="cpu", quiet=True)
SETTINGS = ["victor.registers=3", "victor.drop_layer=2", "convert.verify=none"]


def settings(*more):
    return load_recipe(None, settings=[*SETTINGS, *more])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_llava(folder / "source")
    run = dataclasses.replace(QUIET, out=folder / "converted")
    convert(str(folder / "source"), recipe=settings(), run=run)
    return folder / "converted"


@pytest.fixture
def copied(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "copied")


@pytest.fixture
def changed(copied):
    """A folder whose base was changed in training, as its record says and its weights show."""
    file = copied / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = bytes(4)
    file.write_bytes(data)
    lineage.add_stage(
        copied,
        command="finetune",
        settings={"train": {"rung": "lora"}},
        parent_sha256=lineage.read_lineage(copied)["stages"][-1]["weights_sha256"],
        seed=0,
        base_intact=False,
    )
    return copied


def based_on(base):
    return dataclasses.replace(QUIET, base=str(base))


@torch.no_grad()
def answer(model):
    inputs = tiny_processor()(images=[tiny_picture()], text=["<image> what"], return_tensors="pt")
    return model(**inputs).logits[0, -1]


def test_the_model_that_is_measured_runs_the_code_in_its_folder(converted):
    model = load_shipped(converted, QUIET)

    assert type(model).__module__.startswith("transformers_modules.")
    assert type(model) is not VictorLlava
    assert not model.training
    assert torch.equal(answer(model), answer(checkpoint.load(converted, QUIET)))


@pytest.mark.parametrize("trick", ["other code", "other class", "code for the config"])
def test_code_of_another_hand_is_never_run(copied, tmp_path, capsys, trick):
    evil = f"open({str(tmp_path / 'run')!r}, 'w')\n"
    config = json.loads((copied / "config.json").read_text())
    if trick == "other code":
        with (copied / "modeling_victor.py").open("a") as file:
            file.write(evil)
    else:
        (copied / "evil.py").write_text(f"{evil}class Evil:\n    pass\n")
        name = "AutoConfig" if trick == "code for the config" else "AutoModelForImageTextToText"
        config["auto_map"][name] = "evil.Evil"
        (copied / "config.json").write_text(json.dumps(config))

    model = load_shipped(copied, QUIET)

    assert type(model) is VictorLlava
    assert not (tmp_path / "run").exists()
    assert "its code is not this package's and is not run" in capsys.readouterr().err


def test_a_damaged_model_is_refused_before_its_code_is_run(copied):
    file = copied / "victor.safetensors"
    file.write_bytes(file.read_bytes()[:-8])

    with pytest.raises(VictorError, match=r"victor.safetensors: truncated"):
        load_shipped(copied, QUIET)


def test_the_base_is_the_same_weights_where_they_are_intact(converted):
    model = load_shipped(converted, QUIET)

    base = find_base(converted, model, QUIET)

    assert base.model is model
    assert base.name == "converted"
    with base.contestant().acting([0]):
        off = answer(model)
    native = find_base(converted, model, based_on(converted.parent / "source"))
    assert torch.equal(off, answer(native.model))
    assert not torch.equal(off, answer(model))


def test_none_leaves_the_base_out(converted):
    assert find_base(converted, load_shipped(converted, QUIET), based_on("none")) is None


def test_a_base_whose_bytes_changed_is_not_taken_for_the_base_whatever_is_recorded(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))

    with pytest.raises(VictorError, match="the weights of its base were changed"):
        find_base(copied, load_shipped(copied, QUIET), QUIET)


def test_a_base_is_found_beside_a_model_that_was_changed(converted, changed):
    model = load_shipped(changed, QUIET)
    shutil.copytree(converted, changed.parent / "parent")
    shutil.copytree(converted, changed.parent / "a-stranger")
    (changed.parent / "a-stranger" / "victor.safetensors").unlink()  # no longer the same weights

    base = find_base(changed, model, QUIET)

    assert base.name == "parent"
    assert base.model is not model
    with base.contestant().acting([0]):
        assert torch.equal(
            answer(base.model), answer(VictorLlava.native.from_pretrained(converted).eval())
        )


def test_the_source_of_the_conversion_will_do_too(converted, changed):
    model = load_shipped(changed, QUIET)
    (changed.parent / "source").symlink_to(converted.parent / "source")

    base = find_base(changed, model, QUIET)

    assert base.name == "source"
    assert base.native


def test_a_base_that_brings_an_adapter_is_refused(converted, tmp_path):
    tiny_llava(tmp_path / "other")
    (tmp_path / "other" / "adapter_config.json").write_text("{}")

    with pytest.raises(VictorError, match="adapter"):
        find_base(converted, load_shipped(converted, QUIET), based_on(tmp_path / "other"))


def test_a_base_that_is_nowhere_is_asked_for(changed):
    model = load_shipped(changed, QUIET)

    with pytest.raises(
        VictorError, match=r"nothing beside it holds them\n  fix: add --base SOURCE"
    ):
        find_base(changed, model, QUIET)


def test_a_base_that_was_changed_itself_is_refused(converted, changed):
    model = load_shipped(converted, QUIET)

    with pytest.raises(VictorError, match=r"--base copied: the weights of its own base"):
        find_base(converted, model, based_on(changed))


def test_a_base_that_reads_other_prompts_is_refused(converted, tmp_path):
    model = load_shipped(converted, QUIET)
    other = tiny_llava(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["image_token_index"] = 9
    (other / "config.json").write_text(json.dumps(config))

    with pytest.raises(
        VictorError, match=r"--base other: \d+ token ids with <image> at 9, and the"
    ):
        find_base(converted, model, based_on(other))


def test_everyone_is_entered_and_the_simple_ways_spend_what_the_model_spends(converted):
    field = enter(converted, settings("eval.baselines=true", "seed=5"), QUIET)

    assert list(field.contestants) == ["base", "model", *FLOOR]
    counts = {name: getattr(way, "count", None) for name, way in field.ways.items()}
    assert counts == {"random": 3, "last": 3, "pool": 3, "no-image": None, "no-registers": None}
    assert {way.seed for way in field.ways.values()} == {5}
    assert {id(who.model) for who in field.contestants.values()} == {id(field.model)}
    assert [name for name, who in field.contestants.items() if not who.pictures] == ["no-image"]
    assert list(enter(converted, settings(), QUIET).contestants) == ["base", "model"]
    assert list(enter(converted, settings(), based_on("none")).contestants) == ["model"]


def test_the_simple_ways_act_at_the_models_layer_on_the_bases_weights(changed, converted):
    other = dataclasses.replace(QUIET, out=changed.parent / "deeper")
    source = str(converted.parent / "source")
    convert(source, recipe=settings("victor.drop_layer=4", "victor.registers=8"), run=other)

    field = enter(changed, settings("eval.baselines=true"), based_on(changed.parent / "deeper"))

    assert field.base.model is not field.model
    assert field.base.model.victor.drop_layer == 4
    assert {way.layer for way in field.ways.values() if way.pictures} == {2}
    assert {way.count for way in field.ways.values() if "count" in vars(way)} == {3}
    assert {id(field.contestants[name].model) for name in FLOOR} == {id(field.base.model)}


def test_the_simple_ways_need_the_bases_weights_in_a_victor_model(converted):
    sentence = r"inside a Victor model, and source is not one\n  fix: victorctl convert source"
    with pytest.raises(VictorError, match=sentence):
        enter(converted, settings("eval.baselines=true"), based_on(converted.parent / "source"))


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("none", r"--baselines --base none: baselines act on the base's weights\n  fix: leave one"),
        ("/not/there", r"/not/there: no such folder\n  fix: check the path, or give a Hub id"),
    ],
)
def test_a_base_that_cannot_be_is_refused_before_anything_is_loaded(copied, base, sentence):
    (copied / "victor.safetensors").write_bytes(b"damaged")  # would be found when it is loaded
    asked = settings("eval.baselines=true", "eval.data=demo:test")
    with pytest.raises(VictorError, match=sentence):
        evaluate(copied, recipe=asked, run=based_on(base))


def test_where_shipped_code_is_copied_to_is_named_if_it_may_not_be_written(converted, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/home/of/modules")

    monkeypatch.setattr(checkpoint, "load_with", refuse)
    sentence = "/home/of/modules: Permission denied\n  fix: set HF_MODULES_CACHE to a folder, where"
    with pytest.raises(VictorError, match=sentence):
        load_shipped(converted, QUIET)


@pytest.mark.parametrize("damage", ["victor.json", "config.json"])
def test_a_damaged_folder_beside_a_model_is_nobodys_base(converted, changed, damage):
    model = load_shipped(changed, QUIET)
    shutil.copytree(converted, changed.parent / "another")
    (changed.parent / "another" / damage).write_text('{"half')
    shutil.copytree(converted, changed.parent / "parent")

    assert find_base(changed, model, QUIET).name == "parent"


def test_a_model_that_nothing_says_the_origin_of_needs_its_base_named(converted):
    (converted / "victor.json").unlink()
    model = load_shipped(converted, QUIET)

    with pytest.raises(VictorError, match=r"converted: no victor.json, .*\n  fix: add --base"):
        find_base(converted, model, QUIET)


def test_the_model_that_comes_along_is_a_base_wherever_a_model_of_it_lies(tmp_path):
    model = tmp_path / "model"
    convert("demo", recipe=settings(), run=dataclasses.replace(QUIET, out=model))
    file = model / "model.safetensors"
    state = load_file(file)
    save_file({name: 2 * value for name, value in state.items()}, file, {"format": "pt"})

    base = find_base(model, load_shipped(model, QUIET), QUIET)

    assert (base.name, base.native) == ("demo", True)
