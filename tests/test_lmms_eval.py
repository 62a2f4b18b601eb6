"""victor as a model of lmms-eval, with its own registry and base classes from the wheel.

Faults planted and caught: answers in the order of batches; pictures of one chat under another;
padding on the right; the model's own generation settings; the text that ends an answer left on;
drawn where the task says not to; a base with registers.
"""

import functools
import importlib
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tests.benchmarks import lmms
from tests.converting import run as convert
from tests.tiny import tiny_llava, tiny_picture
from victorctl import checkpoint
from victorctl.errors import VictorError
from victorctl.recipe import Run

pytestmark = lmms.needed

ROOT = Path(__file__).parents[1]
FLAGS = {"victor.registers": 3, "victor.drop_layer": 2, "convert.verify": "none",
         "train.elastic": True}  # fmt: skip
LIKELIEST = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "num_beams": 1}
DOCS = [  # what is asked, and the seeds of pictures
    ("what is red ?", [1]),
    ("how many are there", []),
    ("where is the small black cat or dog ?", [2, 3]),
    ("is it big ?", [4]),
    ("what is this ? and that ?", [5]),
]


@pytest.fixture(scope="module")
def found():
    """What lmms-eval's registry makes of our entry point: the class, and its own `Instance`."""
    (value,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ].items()
    entry = importlib.metadata.EntryPoint(*value, "lmms_eval.models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmms, "STUBS", lmms.STUBS | {"pytz"})
        patch.setattr(
            importlib.metadata, "entry_points", lambda: importlib.metadata.EntryPoints([entry])
        )
        with lmms.importing():
            importlib.import_module("lmms_eval.utils")  # else a name of the empty package
            models = importlib.import_module("lmms_eval.models")
            instances = importlib.import_module("lmms_eval.api.instance")
            yield models.get_model("victor"), instances
    del sys.modules["victorctl.lmms_eval_model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    tiny_llava(place / "source")
    convert(place / "source", place / "victor", flags=FLAGS)
    return place / "victor"


@pytest.fixture(scope="module")
def victor(found, folder):
    """Make the model as lmms-eval does, of a text and of what the command line adds; once each."""

    @functools.cache
    def make(words="", **added):
        cls, _ = found
        added = {"batch_size": 2, "max_batch_size": None, "device": "cpu", **added}
        model = cls.create_from_arg_string(f"pretrained={folder}{words}", added)
        model.task_dict["scenes"] = {"test": DOCS}
        return model

    return make


def messages(doc):
    """Write a question as tasks do, with its pictures first."""
    text, seeds = doc
    pictures = [{"type": "image", "url": tiny_picture(seed)} for seed in seeds]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


@pytest.fixture
def requests(found):
    def make(settings, numbers=(0, 1, 2, 3, 4), said=messages):
        return [
            found[1].Instance(
                "generate_until",
                (DOCS[number][0], said, dict(settings), number, "scenes", "test"),
                0,
                {"task": "scenes", "doc_id": number, "repeats": 1},
            )
            for number in numbers
        ]

    return make


@functools.cache
def loaded(folder, registers):
    model = checkpoint.load(folder, Run(device="cpu", quiet=True), registers)
    return model, checkpoint.load_processor(folder)


def alone(folder, number, *, off=False, registers=None):
    """Answer one question with plain transformers."""
    (model, processor), (text, seeds) = loaded(folder, registers), DOCS[number]
    said = [{"type": "image"}] * len(seeds) + [{"type": "text", "text": text}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": said}], add_generation_prompt=True
    )
    pictures = [tiny_picture(seed) for seed in seeds] or None
    inputs = processor(images=pictures, text=chat, return_tensors="pt")
    with torch.no_grad(), model.registers_off() if off else torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    new = written[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip()


def texts(answers):
    return [answer.text for answer in answers]


def test_lmms_evals_registry_finds_a_chat_model(found):
    cls, instances = found
    assert cls.__module__ == "victorctl.lmms_eval_model"
    assert cls.is_simple is False
    assert issubclass(cls, sys.modules["lmms_eval.api.model"].lmms)
    assert instances.GenerationResult is sys.modules[cls.__module__].GenerationResult


def test_what_it_finds_first_imports_neither_torch_nor_lmms_eval():
    code = "import sys, victorctl.lmms_eval_plugin; print({'torch', 'lmms_eval'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("size", [2, 5])
def test_answers_are_those_of_each_chat_alone_in_the_order_asked(victor, requests, folder, size):
    order = [3, 0, 4, 2, 1]
    answers = victor(batch_size=size).generate_until(requests(LIKELIEST, order))
    assert texts(answers) == [alone(folder, number) for number in order]


def test_the_base_answers_without_registers(victor, requests, folder):
    answers = texts(victor(",base=true").generate_until(requests(LIKELIEST)))
    assert answers == [alone(folder, number, off=True) for number in range(len(DOCS))]
    assert answers != texts(victor().generate_until(requests(LIKELIEST)))


def test_fewer_registers_are_used_if_asked_for(victor, requests, folder):
    model = victor(",registers=1")
    assert model.model.config.victor["registers"] == 1
    answers = texts(model.generate_until(requests(LIKELIEST)))
    assert answers == [alone(folder, number, registers=1) for number in range(len(DOCS))]


def test_pictures_are_opened_a_batch_at_a_time(victor, requests, monkeypatch):
    events = []

    def said(doc):
        events.append("open")
        return messages(doc)

    model = victor()
    generate = model.model.generate
    monkeypatch.setattr(
        model.model, "generate", lambda **how: events.append("write") or generate(**how)
    )
    model.generate_until(requests(LIKELIEST, range(4), said))
    assert events == ["open", "open", "write"] * 2


@pytest.fixture
def wanted(victor, requests, monkeypatch):
    """Read what transformers is told for what a task asks."""

    def ask(settings):
        model, told = victor(batch_size=5), []

        def generate(input_ids, generation_config, **_):
            told.append(generation_config)
            return torch.cat([input_ids, torch.full((len(input_ids), 1), 2)], dim=1)

        monkeypatch.setattr(model.model, "generate", generate)
        model.generate_until(requests(settings))
        (one,) = told
        return one

    return ask


def test_the_tasks_settings_are_told_and_no_others(wanted, folder):
    one = wanted({"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "num_beams": 3})
    assert (one.max_new_tokens, one.do_sample, one.temperature) == (7, True, 0.5)
    assert (one.top_p, one.num_beams, one.repetition_penalty) == (0.9, 3, 1.0)
    assert one.eos_token_id == [2]

    plain = wanted({"until": ["\n\n"]})
    assert (plain.max_new_tokens, plain.do_sample, plain.num_beams) == (1024, False, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "do_sample": False},
        {"temperature": 0, "do_sample": True, "top_p": 0},
        {"temperature": None, "top_p": None, "top_k": None, "num_beams": None},
    ],
)
def test_nothing_is_drawn_where_the_task_says_so_or_the_temperature_is_zero(wanted, settings):
    one = wanted(settings)
    assert (one.do_sample, one.temperature, one.top_p, one.top_k) == (False, 1.0, 1.0, 50)


def test_requests_that_want_different_things_are_not_answered_together(victor, requests):
    short = requests({**LIKELIEST, "max_new_tokens": 1}, [0, 3])
    long = requests(LIKELIEST, [0, 3])
    mixed = [short[0], long[0], short[1], long[1]]
    answers = victor(batch_size=4).generate_until(mixed)
    assert [answer.token_counts.output_tokens for answer in answers][::2] == [1, 1]
    assert [len(text.split()) for text in texts(answers)][::2] == [1, 1]
    assert texts(answers)[1::2] == texts(victor().generate_until(long))


def test_an_answer_ends_before_the_first_text_that_ends_it(victor, requests):
    (whole,) = texts(victor().generate_until(requests(LIKELIEST, [2])))
    first, second, *_ = whole.split()
    assert first != second
    for until in ([second, first[:0]], second, [" " + second, "never"]):
        (answer,) = texts(victor().generate_until(requests({**LIKELIEST, "until": until}, [2])))
        assert answer.strip() == first


def test_tokens_are_counted_up_to_the_one_that_ends_the_answer(victor, requests, monkeypatch):
    model = victor(batch_size=2)

    def generate(input_ids, **_):  # two tokens and the end; five tokens
        new = torch.tensor([[9, 9, 2, 0, 0], [9, 9, 9, 9, 9]])
        return torch.cat([input_ids, new], dim=1)

    monkeypatch.setattr(model.model, "generate", generate)
    answers = model.generate_until(requests(LIKELIEST, [0, 3]))
    assert sorted(answer.token_counts.output_tokens for answer in answers) == [3, 5]


def test_chats_of_several_turns_and_plain_texts_are_taken(victor, requests, folder):
    def said(doc):
        return [
            {"role": "user", "content": [{"type": "text", "text": "what is red ?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a car"}]},
            *messages(doc),
        ]

    def plain(doc):
        return [{"role": "user", "content": doc[0]}]

    assert len(victor().generate_until(requests(LIKELIEST, [0, 3], said))) == 2
    (answer,) = texts(victor().generate_until(requests(LIKELIEST, [1], plain)))
    assert answer == alone(folder, 1)


def test_what_stands_for_a_picture_in_a_text_is_left_out(victor, requests, folder, monkeypatch):
    def said(doc):
        (turn,) = messages(doc)
        turn["content"][-1]["text"] = f"<image>{doc[0]}"
        return [turn]

    def plain(doc):
        return [{"role": "user", "content": f"<image>{doc[0]}"}]

    model = victor(batch_size=2)
    assert texts(model.generate_until(requests(LIKELIEST, [0, 2], said))) == [
        *(alone(folder, 0), alone(folder, 2)),
    ]
    assert texts(model.generate_until(requests(LIKELIEST, [1], plain))) == [alone(folder, 1)]

    # Other families name it otherwise.
    def named(_doc):
        return [{"role": "user", "content": "one <|pad|><image>two"}]

    monkeypatch.setattr(model._greedy.processor, "image_token", "<|pad|>")
    (asked,) = requests(LIKELIEST, [1], named)
    turn, _answer = model._chat(asked).conversation.messages
    assert turn["content"] == [{"type": "text", "text": "one two"}]


def test_a_picture_may_be_a_file(victor, requests, tmp_path):
    def said(doc):
        tiny_picture(1).save(tmp_path / "1.png")
        (turn,) = messages(doc)
        turn["content"][0]["url"] = str(tmp_path / "1.png")
        return [turn]

    from_file = victor().generate_until(requests(LIKELIEST, [0], said))
    assert texts(from_file) == texts(victor().generate_until(requests(LIKELIEST, [0])))


def test_videos_and_likelihoods_and_rounds_are_refused_in_words(victor, requests):
    def said(_doc):
        return [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]

    model = victor()
    with pytest.raises(VictorError, match="the task shows a model videos, and victor reads pict"):
        model.generate_until(requests(LIKELIEST, [0], said))
    with pytest.raises(NotImplementedError, match="victor generates; 1 requests are for"):
        model.loglikelihood(requests(LIKELIEST, [0]))
    with pytest.raises(NotImplementedError, match="victor answers one round"):
        model.generate_until_multi_round(requests(LIKELIEST, [0]))


def test_number_format_device_and_attention_are_those_asked_for(victor):
    model = victor(",dtype=bfloat16,attn=eager")
    assert (model.model.dtype, model.device.type) == (torch.bfloat16, "cpu")
    assert model.model.get_decoder().config._attn_implementation == "eager"
    assert (model.rank, model.world_size, model.batch_size) == (0, 1, 2)
    assert model.accelerator.num_processes == 1


@pytest.mark.parametrize("size", ["auto", 0, "2.5"])
def test_a_batch_size_that_is_no_number_is_refused(victor, size):
    with pytest.raises(VictorError, match=f"--batch_size {size}: not a number of questions"):
        victor(batch_size=size)


def test_what_is_no_victor_model_is_refused(found, folder):
    with pytest.raises(VictorError, match="not a Victor model yet"):
        found[0].create_from_arg_string(f"pretrained={folder.parent / 'source'}")
    with pytest.raises(TypeError, match="pretrian"):
        found[0].create_from_arg_string(f"pretrained={folder},pretrian=x")


def test_memory_is_given_back_before_judges_come(found):
    model = found[0].__new__(found[0])  # nothing is loaded
    model.model = torch.nn.Linear(1, 1)
    model._who = [model.model]
    model.clean()
    assert vars(model) == {}


PROCESS = """
import importlib, sys, torch
from tests.benchmarks import lmms
lmms.STUBS |= {"pytz"}
with lmms.importing():
    importlib.import_module("lmms_eval.utils")
    cls = importlib.import_module("victorctl.lmms_eval_model").Victor
    model = cls.create_from_arg_string(f"pretrained={sys.argv[1]}", {"batch_size": 2})
    # as lmms-eval's evaluator does, to make the processes' shares equal
    counts = model.accelerator.gather(torch.tensor([model.rank + 3], device=model.device))
    told = [model.rank, model.world_size, model.device.type, sorted(counts.tolist())]
    open(f"{sys.argv[2]}/told.{model.rank}", "w").write(repr(told))
"""


@pytest.mark.slow
def test_each_of_several_processes_knows_its_rank(folder, tmp_path):
    (tmp_path / "process.py").write_text(PROCESS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "process.py"), str(folder), str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT),
             "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / f"told.{rank}").read_text() for rank in range(2)]
    assert told == ["[0, 2, 'cpu', [3, 4]]", "[1, 2, 'cpu', [3, 4]]"]
