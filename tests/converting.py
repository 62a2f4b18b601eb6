"""Call `convert` in few words."""

from victorctl.convert import convert
from victorctl.recipe import Run, load_recipe

QUICK = {"convert.verify": "none", "victor.init": "embeddings"}


def run(source, out, *, flags=QUICK, **more):
    options = {"overwrite": False, "dry_run": False, "quiet": True, "device": "cpu"} | more
    return convert(str(source), recipe=load_recipe(flags=flags), run=Run(out=out, **options))


def left(folder):
    return sorted(path.name for path in folder.iterdir())
