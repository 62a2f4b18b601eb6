"""Make a model that is fit to be published, and call `push` in few words."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.tiny import tiny_data, tiny_llava, tiny_picture
from victorctl import convert, evaluate, finetune
from victorctl.push import push
from victorctl.recipe import Run, load_recipe

_FOLDERS: list[TemporaryDirectory] = []  # deleted when the interpreter ends


@cache
def _made(rung: str) -> Path:
    """Convert, train and measure a tiny model, and give the folder that holds all of that."""
    _FOLDERS.append(TemporaryDirectory())
    place = Path(_FOLDERS[-1].name)
    data = str(tiny_data(place / "data"))
    flags = {
        **{"victor.registers": 3, "victor.drop_layer": 2, "train.rung": rung, "train.steps": 1},
        **{"train.batch_size": 2, "train.teacher_cache": False, "train.rank": 2},
        **{"data.train": data, "eval.data": data, "eval.repeats": 0, "eval.max_new_tokens": 2},
    }
    recipe, how = load_recipe(flags=flags), {"device": "cpu", "quiet": True}
    source, converted = tiny_llava(place / "source"), place / "converted"
    convert(str(source), recipe=recipe, run=Run(out=converted, **how))
    finetune(converted, recipe=recipe, run=Run(out=place / "model", **how))
    evaluate(place / "model", recipe=recipe, run=Run(**how))
    tiny_picture().save(place / "model" / "eval" / "tradeoff.png")  # nobody was right: no plot
    file = place / "model" / "eval" / "report.json"
    shown = {"accuracy": {"model": 0.75, "base": 0.8}, "kept": 0.9375, "interval": [0.9, 0.97]}
    file.write_text(json.dumps(json.loads(file.read_text()) | shown))
    return place


def trained(place: Path, rung: str = "register-lora") -> Path:
    """Copy a trained and measured model, to be changed."""
    return Path(shutil.copytree(_made(rung) / "model", place / "model"))


def converted(place: Path) -> Path:
    """Copy a model that was never trained."""
    return Path(shutil.copytree(_made("register-lora") / "converted", place / "converted"))


def run(folder: Path, repo: str = "ada/victor", *, dry_run: bool = False, **settings: object):
    """Push; the licence is told."""
    flags = {f"push.{key}": one for key, one in ({"license": "llama2"} | settings).items()}
    return push(folder, repo, recipe=load_recipe(flags=flags), run=Run(dry_run=dry_run, quiet=True))
