"""The terms of a base model, which are those of what is made from it: asked for, never guessed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from victorctl.errors import VictorError

DEMO = "apache-2.0"
NO_DERIVATIVES = re.compile(r"(?:^|[-_ ])(?:nd|no[-_ ]?deriv\w*)(?:$|[-_ ])", re.IGNORECASE)
OPEN = ("", "unknown", "none")  # what says nothing
KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Licence:
    """Terms, as a model card's metadata names them."""

    license: str
    license_name: str | None = None
    license_link: str | None = None
    found: str = ""
    """Who says so."""

    def metadata(self) -> dict[str, str]:
        """List the keys of the card."""
        return {key: getattr(self, key) for key in KEYS if getattr(self, key)}


UNASKED = Licence("unknown", found="nobody, as the Hub was not asked,")


def find_licence(
    given: str | None,
    card: Mapping[str, Any],
    origin: Mapping[str, Any],
    folder: object,
    *,
    online: bool = True,
) -> Licence:
    """Find a model's licence.

    Args:
        given: By the user.
        card: Metadata that the model's own card has already.
        origin: What the model was made from, as `victor.json` names it.
        folder: The model, for errors.
        online: Whether the Hub can be asked; without it, a base's licence may stay unknown.

    Raises:
        VictorError: If nobody names it, or it allows no derivatives.
    """
    found = (
        _read({"license": given}, "you")
        or _read(card, "the model's own card")
        or (_of_base(origin) if online or not origin.get("commit") else UNASKED)
    )
    if found is None:
        raise VictorError(
            f"{folder}: the licence of its base, {origin.get('name')}, is not known",
            fix="add --set push.license=ID with the base's, such as llama2 or apache-2.0",
        )
    named = " ".join(found.metadata().values())
    if NO_DERIVATIVES.search(found.license) or NO_DERIVATIVES.search(found.license_name or ""):
        raise VictorError(
            f"{folder}: {found.found} says {named}, which allows nobody to publish derivatives",
            fix="ask the authors of the base, or keep the model to yourself",
        )
    return found


def _of_base(origin: Mapping[str, Any]) -> Licence | None:
    """Ask who published the base, unless it is the model that comes along."""
    if origin.get("name") == "demo" and not origin.get("commit"):
        return Licence(DEMO, found="victorctl")
    if not origin.get("commit"):
        return None
    from huggingface_hub import HfApi

    from victorctl.hub import explained, patiently

    name = origin["name"]
    with explained(name):
        about = patiently(HfApi().model_info, name, revision=origin["commit"])
    return _read(about.card_data.to_dict() if about.card_data else {}, name)


def _read(card: Mapping[str, Any], who: str) -> Licence | None:
    values = [card.get(key) for key in KEYS]
    named, *more = [value if isinstance(value, str) else None for value in values]
    return None if (named or "").lower() in OPEN else Licence(named, *more, found=who)
