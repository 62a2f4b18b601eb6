"""Call `convert` in few words."""

import pytest

from victorctl.convert import convert
from victorctl.errors import VictorError
from victorctl.recipe import Run, load_recipe

QUICK = {"convert.verify": "none", "victor.init": "embeddings"}


def run(source, out, *, flags=QUICK, **more):
    options = {"overwrite": False, "dry_run": False, "quiet": True, "device": "cpu"} | more
    return convert(str(source), recipe=load_recipe(flags=flags), run=Run(out=out, **options))


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(folder, sentence, out="out", **flags):
    """Convert in vain, and find nothing new beside the source."""
    before = left(folder.parent)
    with pytest.raises(VictorError, match=sentence) as caught:
        run(folder, folder.parent / out, flags=QUICK | flags)
    assert left(folder.parent) == before
    return caught.value
