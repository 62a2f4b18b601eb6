import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_llava, tiny_picture
from victorctl import checkpoint, weights
from victorctl.contestants import load_shipped
from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.evaluate import evaluate
from victorctl.finetune import finetune
from victorctl.recipe import Run, load_recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A converted model of several shards; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("made")
    source = tiny_llava(folder / "llava", max_shard_size="100KB")
    recipe = load_recipe(flags={"convert.verify": "none", "victor.init": "embeddings"})
    convert(str(source), recipe=recipe, run=Run(out=folder / "victor", quiet=True))
    return folder / "victor"


@pytest.fixture
def victor(made, tmp_path):
    return shutil.copytree(made, tmp_path / "victor")


def change(file, **tensors):
    save_file(load_file(file) | tensors, file, {"format": "pt"})


def test_a_victor_model_is_loaded_with_our_own_class_ready_to_answer(made, capfd):
    model = checkpoint.load(made)
    registers = load_file(made / "victor.safetensors")["victor.registers.weight"]
    assert type(model).__module__ == "victorctl.modeling_victor"
    assert not model.training
    assert torch.equal(model.victor.registers.weight, registers)
    assert model.dtype == torch.float32
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")


def test_the_run_decides_number_format_and_attention(made):
    model = checkpoint.load(made, Run(dtype="bf16", attn="eager", device="cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.get_text_config()._attn_implementation == "eager"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_registers_that_are_no_numbers_are_refused(victor, value):
    registers = load_file(victor / "victor.safetensors")["victor.registers.weight"]
    registers[5, 3] = value
    change(victor / "victor.safetensors", **{"victor.registers.weight": registers})
    sentence = r"victor\.safetensors: victor\.registers\.weight holds NaN or infinity\n  fix: train"
    with pytest.raises(VictorError, match=sentence):
        checkpoint.load(victor)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"victor.registers.weight": torch.ones(3, 32)},
            "mismatched_keys.*victor.registers.weight",
        ),
        ({"victor.extra": torch.ones(3)}, "unexpected_keys.*victor.extra"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(victor, tensors, sentence):
    change(victor / "victor.safetensors", **tensors)
    index = victor / "model.safetensors.index.victor.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= dict.fromkeys(tensors, "victor.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(
        VictorError, match=rf"does not hold this model: .*{sentence}.*\n  fix: conv"
    ):
        checkpoint.load(victor)


@pytest.mark.parametrize(
    "name", ["victor.safetensors", "model-00002-of-00004.safetensors", "config.json"]
)
def test_a_missing_file_is_named(victor, name):
    (victor / name).unlink()
    with pytest.raises(VictorError, match=name.replace(".", r"\.")):
        checkpoint.load(victor)


@pytest.mark.parametrize("name", ["victor.safetensors", "model-00003-of-00004.safetensors"])
def test_a_truncated_file_is_named(victor, name):
    (victor / name).write_bytes((victor / name).read_bytes()[:-1])
    with pytest.raises(VictorError, match=rf"{name}: truncated"):
        checkpoint.load(victor)


def test_a_model_that_is_not_converted_is_refused_with_the_command_that_converts_it(
    tmp_path, capfd
):
    folder = tiny_llava(tmp_path / "llava")
    capfd.readouterr()
    run = Run(out=tmp_path / "out", device="cpu")
    recipe = load_recipe(flags={"data.train": "demo", "eval.data": "demo:test"})
    for call in (
        checkpoint.load,
        checkpoint.read_victor_config,
        lambda model: load_shipped(model, run),
        lambda model: finetune(model, recipe=recipe, run=run),
        lambda model: evaluate(model, recipe=recipe, run=run),
    ):
        with pytest.raises(
            VictorError, match="llava: not a Victor model yet\n  fix: victorctl conver"
        ):
            call(folder)
    assert capfd.readouterr().err == ""  # nothing is said of the code in the folder


def an_adapter(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return r"adapter_config\.json: an adapter of PEFT, which would be added .*\n  fix: merge it"


def other_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "other.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    return r"config\.json: transformers_weights names another .*\n  fix: take the key away"


def a_damaged_file_that_transformers_passes_over(folder):
    (folder / "generation_config.json").write_text("{")
    return r"generation_config\.json: not JSON"


def a_broken_link(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("../../blobs/gone")
    return r"tokenizer\.json: a link to a file that is not there\n  fix: download this file again"


def a_broken_link_to_weights(folder):
    file = next(folder.glob("model*.safetensors"))
    file.unlink()
    file.symlink_to("/nowhere")
    return rf"{file.name}: a link to a file that is not there"


def a_broken_link_to_a_template(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").symlink_to("gone")
    return r"tool\.jinja: a link to a file that is not there"


TWISTS = [
    an_adapter,
    other_weights,
    a_damaged_file_that_transformers_passes_over,
    a_broken_link,
    a_broken_link_to_weights,
    a_broken_link_to_a_template,
]


@pytest.mark.parametrize("twist", TWISTS)
def test_what_transformers_would_load_unasked_or_what_is_lost_is_refused(victor, twist):
    sentence = twist(victor)
    for call in (checkpoint.load, checkpoint.check_plain):
        with pytest.raises(VictorError, match=sentence):
            call(victor)


def test_a_broken_link_that_nobody_reads_does_not_matter(victor):
    (victor / "README.md").symlink_to("gone")
    checkpoint.check_plain(victor)


def test_a_folder_that_is_not_there_is_not_said_to_lack_a_file(tmp_path):
    with pytest.raises(VictorError, match="nowhere: no such folder"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"no config\.json, so this is no model folder"),
        ("{", r"config\.json: not JSON"),
        ("[1]", r"config\.json: not a JSON object"),
    ],
)
def test_a_folder_without_a_configuration_is_no_model(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(VictorError, match=sentence):
        checkpoint.read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_config": []}, r"Validation error for field 'text_config'"),
        ({"text_config": {"model_type": "nope"}}, r"nope"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": "many"}}, "num_hidden_layer"),
    ],
)
def test_a_configuration_that_transformers_cannot_read_is_named_in_short(victor, change, sentence):
    config = json.loads((victor / "config.json").read_text()) | change
    (victor / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        VictorError, match=rf"config\.json: transformers cannot read it \(.*{sentence}.*\)\n  fix"
    ) as caught:
        checkpoint.load_config(victor)
    assert len(caught.value.problem) < 200 + len(str(victor))


def test_one_file_of_weights_stands_before_an_index(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    assert checkpoint.weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_shards_are_those_that_the_index_names(tmp_path):
    for name in ("one.safetensors", "two.safetensors", "victor.safetensors"):
        (tmp_path / name).write_text("")
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    names = [file.name for file in checkpoint.weight_files(tmp_path)]
    assert names == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "no weights\n  fix: use a copy with "),
        (["pytorch_model.bin"], r"no weights but pytorch_model\.bin, a pickle, which may run code"),
        (["consolidated.00.pth"], r"no weights but consolidated\.00\.pth, a pickle"),
        (
            ["model-1.safetensors"],
            r"model\.safetensors\.index\.json is missing, so the shards have",
        ),
    ],
)
def test_says_which_weights_it_cannot_use(tmp_path, files, sentence):
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")  # never opened
    with pytest.raises(VictorError, match=sentence):
        checkpoint.weight_files(tmp_path)


OUTSIDE = ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", r"..\a.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path, name):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for call in (checkpoint.weight_files, checkpoint.shard_names):
        with pytest.raises(VictorError, match="lies outside of the folder"):
            call(tmp_path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_nor_can_the_index_of_a_victor_model(victor, name):
    index = victor / "model.safetensors.index.victor.json"
    content = json.loads(index.read_text())
    content["weight_map"]["victor.registers.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(VictorError, match=r"index\.victor\.json: shard .* lies outside of the fol"):
        checkpoint.load(victor)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "its weight_map names no files"),
        ({"weight_map": ["a.safetensors"]}, "its weight_map names no files"),
        ({"weight_map": {"a": 3, "b": "b.safetensors"}}, "its weight_map names no files"),
        ({"weight_map": {"a": ""}}, "shard '' is no safetensors file"),
        ({"weight_map": {"a": "model.bin"}}, "shard 'model.bin' is no safetensors file"),
        ({"weight_map": {"a": "victor.safetensors"}}, "has the name that registers are kept under"),
    ],
)
def test_an_index_that_names_no_weights_is_refused(tmp_path, content, sentence):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(VictorError, match=sentence):
        checkpoint.weight_files(tmp_path)


def test_a_copy_of_links_holds_their_contents_and_folders_are_left_out(victor, tmp_path):
    blobs, linked, target = tmp_path / "blobs", tmp_path / "a" / "linked", tmp_path / "copy"
    shutil.move(victor, blobs)
    linked.mkdir(parents=True)
    target.mkdir()
    for file in blobs.iterdir():  # as in the Hub's cache
        (linked / file.name).symlink_to(f"../../blobs/{file.name}")
    (linked / "LICENSES").mkdir()

    checkpoint.check_plain(linked)
    checkpoint.copy_files(linked, target, link=True)

    names = {file.name for file in target.iterdir()}
    assert {"config.json", "tokenizer.json", "model-00001-of-00004.safetensors"} <= names
    assert "LICENSES" not in names
    assert not any(file.is_symlink() for file in target.iterdir())
    shared = {name for name in names if (target / name).samefile(blobs / name)}
    assert shared == {f"model-0000{index}-of-00004.safetensors" for index in (1, 2, 3, 4)}
    for name in names:
        assert (target / name).read_bytes() == (blobs / name).read_bytes(), name


def test_a_copy_has_the_base_and_the_record_but_no_registers_and_no_foreign_code(victor, tmp_path):
    for name in ("other.py", "pytorch_model.bin", "optimizer.pt", "training_args.bin", "README.md"):
        (victor / name).write_text("x")
    (victor / "modeling_victor.py").write_text("changed")
    (victor / "eval").mkdir()
    target = tmp_path / "copy"
    target.mkdir()

    hashes = checkpoint.copy_files(
        victor, target, link=False, leave_out={"model-00002-of-00004.safetensors"}
    )

    shards = [f"model-0000{index}-of-00004.safetensors" for index in (1, 3, 4)]
    assert hashes == {name: weights.sha256(victor / name) for name in shards}
    assert sorted(path.name for path in target.iterdir()) == sorted(
        [
            *shards,
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "modeling_victor.py",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "victor.json",
        ]
    )
    assert checkpoint.shipped_code_intact(target)
    assert not checkpoint.shipped_code_intact(victor)
    for name in (*shards, "tokenizer.json", "victor.json"):
        assert (target / name).read_bytes() == (victor / name).read_bytes()


def test_a_linked_copy_shares_the_shards_and_nothing_else(made, tmp_path):
    checkpoint.copy_files(made, tmp_path, link=True)
    shared = {path.name for path in tmp_path.iterdir() if path.samefile(made / path.name)}
    assert shared == {f"model-0000{index}-of-00004.safetensors" for index in (1, 2, 3, 4)}


def test_code_that_is_missing_is_not_intact(tmp_path):
    assert not checkpoint.shipped_code_intact(tmp_path)


def test_the_processor_of_a_folder_is_loaded_without_running_its_code(made):
    processor = checkpoint.load_processor(made)
    inputs = processor(images=tiny_picture(), text="<image> what is it ?", return_tensors="pt")
    assert int((inputs["input_ids"] == 4).sum()) == 16


def test_says_that_there_is_no_processor(victor):
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (victor / name).unlink()
    assert not checkpoint.has_processor(victor)
    with pytest.raises(VictorError, match="victor: no processor that transformers can load"):
        checkpoint.load_processor(victor)
