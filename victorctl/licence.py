"""The terms of a base model, which are those of what is made from it: asked for, never guessed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from victorctl.errors import VictorError
from victorctl.runtime import say

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
    of_base: bool = False
    """Whether that is who published the base."""

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
    """Find a model's licence: the user's word, else the base's, else that of the model's own card.

    Args:
        given: By the user.
        card: Metadata that the model's own card has already.
        origin: What the model was made from, as `victor.json` names it.
        folder: The model, for errors.
        online: Whether the Hub can be asked; without it, a base's licence may stay unknown.

    Raises:
        VictorError: If nobody names it, card and base disagree, or one allows no derivatives.
    """
    asked = online or not origin.get("commit")
    said = _read({"license": given}, "--set push.license")
    base = _of_base(origin) if asked else None
    own = _read(card, "README.md")
    for each in filter(None, (said, base, own)):
        _check_derivatives(each, folder)
    if said:
        if base and base.license != said.license:
            say(f"warning: the base's own page says {base.license}", quiet=False)
        return said
    if base and own and base.license != own.license:
        raise VictorError(
            f"{folder}: its page says {own.license}, and its base, {origin['name']}, "
            f"{base.license}",
            fix="add --set push.license=ID with what holds, or correct the page",
        )
    found = base or own or (None if asked else UNASKED)
    if found is None:
        raise VictorError(
            f"{folder}: the licence of its base, {origin.get('name')}, is not known",
            fix="add --set push.license=ID with the base's, such as llama2 or apache-2.0",
        )
    return found


def _check_derivatives(found: Licence, folder: object) -> None:
    for name in (found.license, found.license_name or ""):
        if NO_DERIVATIVES.search(name):
            raise VictorError(
                f"{folder}: {found.found} says {name}, which allows nobody to publish derivatives",
                fix="ask the authors of the base, or keep the model to yourself",
            )


def _of_base(origin: Mapping[str, Any]) -> Licence | None:
    """Ask who published the base, unless it is the model that comes along."""
    if origin.get("name") == "demo" and not origin.get("commit"):
        return Licence(DEMO, found="victorctl", of_base=True)
    if not origin.get("commit"):
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from victorctl.hub import endpoint, explained, patiently

    name, commit = origin["name"], origin["commit"]
    with explained(name):
        try:
            about = patiently(HfApi().model_info, name, revision=commit)
        except (RepositoryNotFoundError, RevisionNotFoundError):  # gone since
            return None
    found = _read(about.card_data.to_dict() if about.card_data else {}, name)
    found = replace(found, of_base=True) if found else None
    if found and found.license_link and "://" not in found.license_link:
        link = f"{endpoint()}/{name}/blob/{commit}/{found.license_link}"
        found = replace(found, license_link=link)
    return found


def _read(card: Mapping[str, Any], who: str) -> Licence | None:
    values = [card.get(key) for key in KEYS]
    named, *more = [value if isinstance(value, str) else None for value in values]
    return None if (named or "").lower() in OPEN else Licence(named, *more, found=who)
