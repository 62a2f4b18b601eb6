"""A machine without victorctl: stock transformers loads the folder, and answers as we do.

Faults planted and caught: the file imports the package.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import backbones
from tests.modeling import laws
from tests.tiny import tiny_picture, tiny_processor
from tests.victor_models import BATCH, IMAGE, PLAIN, answers, digests, inputs, logits, shared_native
from victorctl import modeling_victor

SHIPPED = Path(modeling_victor.__file__)
MESSAGE = "what is this ?"


ELSEWHERE = """
import sys
sys.modules["victorctl"] = None  # as if it had never been installed
import json
import torch
from transformers import AutoModelForImageTextToText, pipeline

folder, work, how, batch, question = json.loads(sys.argv[1])
try:
    import victorctl
    sys.exit("victorctl can be imported")
except ImportError:
    pass
batch = torch.load(batch)
result = {}
for name, trust in (("trusted", {"trust_remote_code": True}), ("plain", {})):
    model = AutoModelForImageTextToText.from_pretrained(folder, **trust).eval()
    with torch.no_grad():
        result[name] = model(**batch).logits
    result[f"{name} class"] = [type(model).__module__, type(model).__name__]
    result[f"{name} tokens"] = model.generate(**batch, **how)
    if trust:
        model.save_pretrained(work + "/saved")
ask = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
result["pipe"] = ask(text=question, generate_kwargs=how, return_tensors=True)
torch.save(result, work + "/result.pt")
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "tiny.png"
    tiny_picture().save(file)
    return file


@pytest.fixture(scope="module")
def question(picture):
    return [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(picture)}, {"type": "text", "text": MESSAGE}],
        }
    ]


def run_elsewhere(work, *words):
    """Run Python as on a machine that has never seen this package, and return what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-I", *map(str, words)],
        cwd=work,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def elsewhere(folder, question, tmp_path_factory):
    """What a process sees that has the folder and stock transformers, and nothing of ours."""
    work = tmp_path_factory.mktemp("elsewhere")
    torch.save(inputs(*BATCH), work / "batch.pt")
    told = json.dumps([str(folder), str(work), PLAIN, str(work / "batch.pt"), question])
    run_elsewhere(work, "-c", ELSEWHERE, told)
    return torch.load(work / "result.pt", weights_only=False) | {"saved": work / "saved"}


@pytest.mark.slow
def test_every_law_holds_on_a_machine_without_this_package(tmp_path):
    place = backbones.make(tmp_path / "cohere2", "cohere2")

    said = run_elsewhere(tmp_path, "-W", "error", laws.__file__, place)

    assert said.splitlines() == [f"cohere2: {law.__name__}" for law in laws.LAWS]


def test_where_code_is_trusted_the_folder_is_a_victor_model(elsewhere, model):
    module, name = elsewhere["trusted class"]

    assert name == "VictorLlava"
    assert module.startswith("transformers_modules.")
    assert torch.equal(elsewhere["trusted"], logits(model))
    assert torch.equal(elsewhere["trusted tokens"], answers(model))


def test_where_code_is_not_trusted_the_folder_is_the_base(elsewhere):
    native = shared_native(text="llama")

    assert elsewhere["plain class"][1] == "LlavaForConditionalGeneration"
    assert torch.equal(elsewhere["plain"], logits(native))
    assert torch.equal(elsewhere["plain tokens"], answers(native))


def test_the_pipeline_answers_with_our_tokens(elsewhere, model, question):
    batch = tiny_processor().apply_chat_template(
        question,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )

    expected = model.generate(**batch, **PLAIN)

    assert int((batch["input_ids"] == IMAGE).sum()) == 16
    assert elsewhere["pipe"][0]["generated_token_ids"].tolist() == expected[0].tolist()


def test_a_model_saved_elsewhere_is_the_same_folder(elsewhere, folder):
    saved = digests(elsewhere["saved"])

    assert {"modeling_victor.py", "victor.safetensors", "config.json"} <= saved.keys()
    assert saved.items() <= digests(folder).items()


def test_the_shipped_file_can_be_loaded_alone():
    tree = ast.parse(SHIPPED.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = set()
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0  # files are copied one by one
            names.add(node.module)
        else:
            names.update(alias.name for alias in node.names)

    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"torch", "transformers", "safetensors"}
