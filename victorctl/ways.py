"""Methods brought to budgets: who is compared, with which settings, and what that cannot reach."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from transformers import PreTrainedModel

from victorctl import methods
from victorctl.answering import Contestant, by_method
from victorctl.errors import VictorError
from victorctl.methods.base import Method, Spec
from victorctl.methods.seeing import unsuited
from victorctl.sections import CompareSection
from victorctl.variants import VICTOR, Variant

VICTOR_SOURCE = "Wen et al. 2024, arXiv 2410.14072; post-hoc conversion is this project's"
NEAR = 0.02  # share of a budget within which it counts as reached
HALF = 0.5  # tokens of each picture within which it does, too

Budget = float | Literal["auto"]


@dataclass(frozen=True)
class Way:
    """A method with the settings that bring it nearest to a budget.

    Args:
        method: Its name.
        settings: What it was set to, but for defaults of all methods.
        mean: Mean visual tokens that it plans to let into a layer for a question; of one whose
            pictures decide, a guess.
        often: How many pictures or tiles of a question it decides about, on average.
        contestant: Answers so.
        own: The method itself; None for Victor.
    """

    method: str
    settings: Mapping[str, Any]
    mean: float
    often: float
    contestant: Contestant
    own: Method | None

    @property
    def name(self) -> str:
        """Name it, as no other way is named."""
        said = ",".join(f"{key}={value}" for key, value in sorted(self.settings.items()))
        return f"{self.method}:{said}" if said else self.method


@dataclass(frozen=True)
class Aim:
    """What a way was meant to spend.

    Args:
        budget: As it was asked for, in mean visual tokens.
        way: That comes nearest.
    """

    budget: float
    way: Way

    def reached(self, mean: float) -> bool:
        """Tell whether so much is the budget."""
        return abs(mean - self.budget) <= max(HALF * self.way.often, NEAR * self.budget)


@dataclass(frozen=True)
class Models:
    """Whose weights the ways use, and what is asked of them.

    Args:
        victor: The Victor model.
        base: The same, or another, whose weights are the unconverted model's.
        picture: What budgets are solved for.
        tile: The same of one tile of a picture, for methods that act before the projector.
        tiles: Tiles of a picture.
        pictures: Of a question, on average.
        seed: Of random choices.
    """

    victor: PreTrainedModel
    base: PreTrainedModel
    picture: Spec
    tile: Spec
    tiles: int
    pictures: float
    seed: int

    @property
    def auto(self) -> float:
        """Mean visual tokens that the Victor model spends as it is."""
        return self._victor(self.victor.config.victor["registers"]).mean

    def aims(
        self,
        names: Sequence[str],
        budgets: Sequence[Budget],
        settings: Mapping[str, Mapping[str, Any]],
    ) -> Iterator[Aim]:
        """Bring every method to every budget, or as near as it comes.

        Args:
            names: Of methods.
            budgets: Mean visual tokens entering a layer for a question.
            settings: Of methods, by name.
        """
        known: dict[str, Way] = {}
        for budget in dict.fromkeys(budgets):
            spent = self.auto if budget == "auto" else float(budget)
            for name in names:
                way = self._way(name, spent, settings.get(name, {}))
                yield Aim(spent, known.setdefault(way.name, way))

    def _way(self, name: str, budget: float, settings: Mapping[str, Any]) -> Way:
        if name == VICTOR:
            return self._fit_victor(budget)
        start = configured(name, {"seed": self.seed, **settings})
        often, spec = self.pictures, self.picture
        if start.sees:
            often, spec = self.pictures * self.tiles, self.tile
        way = start.fit(budget / often, spec)
        shown = way.model_dump(exclude_defaults=True)
        shown = {key: value for key, value in shown.items() if key != "seed" or key in settings}
        if way.knob is not None:
            shown[way.knob] = getattr(way, way.knob)
        return Way(name, shown, often * way.mean(spec), often, by_method(way, self.base), way)

    def _fit_victor(self, budget: float) -> Way:
        """Use as many registers as a budget allows, where the model serves any number."""
        victor = self.victor.config.victor
        most = victor["registers"]
        counts = range(1, most + 1) if victor.get("elastic") else [most]
        ways = [self._victor(count) for count in counts]
        return min(ways, key=lambda way: abs(way.mean - budget))

    def _victor(self, registers: int) -> Way:
        victor = self.victor.config.victor
        variant = Variant(VICTOR, registers, victor["drop_layer"])
        entering = variant.tokens(self.picture.layers, visual=self.picture.visual, text=0)
        mean = self.pictures * sum(entering) / len(entering)
        settings = {"registers": registers, "layer": victor["drop_layer"]}
        who = variant.contestant(self.victor, self.seed)
        return Way(VICTOR, settings, mean, self.pictures, who, None)


def configured(name: str, settings: Mapping[str, Any]) -> Method:
    """Set a method up.

    Raises:
        VictorError: If it has no such settings, or lacks what the user must give.
    """
    cls = methods.method(name)
    try:
        made = cls(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise VictorError(
            f"compare.settings.{name}.{place}: {first['msg']}",
            fix=f"use its settings: {', '.join(cls.model_fields)}",
        ) from error
    made.ready()
    return made


def chosen(section: CompareSection, config: Any) -> list[str]:
    """Name the methods that are asked for, each once, and check what can be checked of them.

    `all` are those that can act in a model of this kind, and need nothing more of the user.

    Args:
        section: What is asked for.
        config: Of the model.

    Raises:
        VictorError: If one is not known or cannot act in such a model, or a setting is of no use.
    """
    why = unsuited(config)
    usable = [
        name for name in methods.names() if not methods.method(name).extras and _fits(name, why)
    ]
    found = list(
        dict.fromkeys(
            one
            for name in section.methods
            for one in ([VICTOR, *usable] if name == "all" else [name])
        )
    )
    if not found:
        raise VictorError("--methods names none", fix="name some: --methods victor,fastv,pool")
    for name in found:
        if name != VICTOR and not _fits(name, why):
            raise VictorError(
                f"{name} acts on a tower's patches one by one, and {why}",
                fix="leave it out, or use --methods all for those that can act here",
            )
    _check_settings(section.settings, found)
    return found


def _fits(name: str, why: str | None) -> bool:
    return why is None or methods.method(name).stage == "layers"


def _check_settings(settings: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    """Refuse settings that would change nothing."""
    for name, own in settings.items():
        if name not in names or name == VICTOR:
            why = "has none" if name == VICTOR else "is not among --methods"
            raise VictorError(f"compare.settings.{name}: {name} {why}", fix="leave it out")
        knob = methods.method(name).knob
        if knob in own:
            raise VictorError(
                f"compare.settings.{name}.{knob}: it is what budgets are solved for",
                fix="leave it out, and choose --budgets",
            )
    for name in names:
        if name != VICTOR:
            configured(name, settings.get(name, {}))


def describe() -> dict[str, list[dict[str, Any]]]:
    """List all methods.

    Returns:
        `methods`: for each its `method` (name), `stage`, whether it needs `training`, what sets its
        budget (`knob`), its `settings` with defaults, its `source`, and what of it is `unverified`.
    """
    own = {
        "method": VICTOR,
        "stage": "layers",
        "training": "registers",
        "knob": "registers",
        "source": VICTOR_SOURCE,
        "unverified": [],
        "settings": [],
    }
    return {"methods": [own, *(_described(name) for name in methods.names())]}


def _described(name: str) -> dict[str, Any]:
    cls = methods.method(name)
    known = {key: field.default for key, field in cls.model_fields.items() if key != "seed"}
    settings = [f"{key}={value}" for key, value in known.items()]
    return {
        "method": name,
        "stage": cls.stage,
        "training": "none",
        "knob": cls.knob or "the picture",
        "source": cls.source,
        "unverified": list(cls.unverified),
        "settings": settings,
    }
