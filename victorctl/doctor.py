"""What a support person would ask: versions, devices, memory, disk, the Hub's settings.

Nothing here shows a path, a user name or a token, so the output can be posted as it is.
"""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.specifiers import SpecifierSet

from victorctl import __version__, recipes
from victorctl.errors import CheckFailed
from victorctl.units import size

NEEDED = {
    "torch": ">=2.6",
    "transformers": ">=5.23,<6",
    "accelerate": "",
    "peft": "",
    "datasets": ">=5",
    "safetensors": "",
    "huggingface_hub": ">=2",
    "pillow": "",
    "numpy": "",
    "typer": ">=0.29",
    "rich": "",
    "pydantic": ">=2",
    "pyyaml": "",
    "jinja2": "",
    "matplotlib": "",
    "packaging": "",
    "psutil": "",
    "sentencepiece": "",
    "protobuf": "",
}
LITTLE_DISK = 5 * 10**9  # bytes; a 7B model in half precision takes 14


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and what to do where it is not well."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def diagnose() -> dict[str, list[dict[str, Any]]]:
    """Look at this machine.

    Returns:
        Under `checks`, rows of `check`, `state` (ok, warn, fail), `found` and `fix`.
    """
    checks = [Check("victorctl", "ok", __version__), *_system(), *_packages()]
    if all(check.state == "ok" for check in checks if check.check in ("torch", "transformers")):
        checks += [*_devices(), _attention(), _shipped_file()]
    checks += [_recipes(), _disk("disk here", Path.cwd())]
    if not any(check.check == "huggingface_hub" and check.state == "fail" for check in checks):
        checks += _hub()
    return {"checks": [asdict(check) for check in checks]}


def demand(result: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse a machine on which a check failed.

    Raises:
        CheckFailed: With the names of all that failed and the first fix.
    """
    failed = [row for row in result["checks"] if row["state"] == "fail"]
    if failed:
        names = ", ".join(row["check"] for row in failed)
        raise CheckFailed(f"{len(failed)} failed: {names}", fix=failed[0]["fix"])


def _system() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    yield Check("platform", "ok", platform.platform())
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Check("memory", "ok", size(memory))


def _packages() -> Iterator[Check]:
    for name, range_ in NEEDED.items():
        fix = f"pip install '{name}{range_}'"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", fix)
            continue
        fits = SpecifierSet(range_).contains(found, prereleases=True)
        yield Check(name, "ok", found) if fits else Check(name, "fail", found, fix)


def _devices() -> Iterator[Check]:
    import torch

    yield Check("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found = f"{name}, {size(free)} of {size(total)} free"
        yield Check(f"cuda:{index}", "ok", found)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        found = f"none seen; torch is built {f'for CUDA {built}' if built else 'without CUDA'}"
        yield Check(
            "gpu", "warn", found, "only needed for large models: see pytorch.org/get-started"
        )


def _attention() -> Check:
    from victorctl.runtime import ATTENTIONS

    return Check("attention", "ok", ", ".join(ATTENTIONS))


def _shipped_file() -> Check:
    try:
        import victorctl.modeling_victor  # noqa: F401
    except (ImportError, AttributeError) as error:
        fix = f"pip install 'transformers{NEEDED['transformers']}'"
        return Check("modeling_victor.py", "fail", f"{type(error).__name__}: {error}", fix)
    return Check("modeling_victor.py", "ok", "imports")


def _recipes() -> Check:
    count = len(recipes.names())
    if count == 0:
        return Check("recipes", "fail", "none", "pip install --force-reinstall victorctl")
    return Check("recipes", "ok", str(count))


def _disk(name: str, place: Path) -> Check:
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < LITTLE_DISK:
        return Check(name, "warn", f"{size(free)} free", "free some, or use convert --link")
    return Check(name, "ok", f"{size(free)} free")


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    yield _disk("disk of the hub's cache", Path(constants.HF_HUB_CACHE))
    yield _endpoint(constants.ENDPOINT)
    offline = "HF_HUB_OFFLINE is set: only folders and cached models"
    online = "may be asked (whether it answers was not tried)"
    yield Check("hub", "ok", offline if constants.HF_HUB_OFFLINE else online)
    yield Check("hub token", "ok", "present" if get_token() else "none")


def _endpoint(url: str) -> Check:
    parts = urlsplit(url)
    found = f"{parts.scheme}://{parts.hostname}"
    if parts.scheme == "https" or _is_loopback(parts.hostname or ""):
        return Check("hub endpoint", "ok", found)
    return Check(
        "hub endpoint", "warn", f"{found}: not encrypted", "set HF_ENDPOINT to https://..."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
