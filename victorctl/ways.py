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
from victorctl.variants import VICTOR, Variant

VICTOR_SOURCE = "Wen et al. 2024, arXiv 2410.14072; post-hoc conversion is this project's"
NEAR = 0.02  # share of a budget within which it counts as reached
HALF = 0.5  # tokens within which it does, too

Budget = float | Literal["auto"]


@dataclass(frozen=True)
class Way:
    """A method with the settings that bring it nearest to a budget.

    Args:
        method: Its name.
        settings: What it was set to, but for defaults of all methods.
        mean: Mean visual tokens that it plans to let into a layer; of one whose pictures decide, a
            guess.
        contestant: Answers so.
        own: The method itself; None for Victor.
    """

    method: str
    settings: Mapping[str, Any]
    mean: float
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
        return abs(mean - self.budget) <= max(HALF, NEAR * self.budget)


@dataclass(frozen=True)
class Models:
    """Whose weights the ways use.

    Args:
        victor: The Victor model.
        base: The same, or another, whose weights are the unconverted model's.
        spec: What budgets are solved for.
        seed: Of random choices.
    """

    victor: PreTrainedModel
    base: PreTrainedModel
    spec: Spec
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

        Raises:
            VictorError: If there is no such method, or not such settings.
        """
        known: dict[str, Way] = {}
        for budget in budgets:
            spent = self.auto if budget == "auto" else float(budget)
            for name in names:
                way = self._way(name, spent, settings.get(name, {}))
                yield Aim(spent, known.setdefault(way.name, way))

    def _way(self, name: str, budget: float, settings: Mapping[str, Any]) -> Way:
        if name == VICTOR:
            return self._fit_victor(budget)
        cls = methods.method(name)
        try:
            start = cls(**{"seed": self.seed, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise VictorError(
                f"compare.settings.{name}.{place}: {first['msg']}",
                fix=f"use its settings: {', '.join(cls.model_fields)}",
            ) from error
        way = start.fit(budget, self.spec)
        shown = {
            key: value
            for key, value in way.model_dump(exclude_defaults=True).items()
            if key != "seed"
        }
        if way.knob is not None:
            shown[way.knob] = getattr(way, way.knob)
        return Way(name, shown, way.mean(self.spec), by_method(way, self.base), way)

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
        entering = variant.tokens(self.spec.layers, visual=self.spec.visual, text=0)
        mean = sum(entering) / len(entering)
        settings = {"registers": registers, "layer": victor["drop_layer"]}
        return Way(VICTOR, settings, mean, variant.contestant(self.victor, self.seed), None)


def chosen(names: Sequence[str]) -> list[str]:
    """Put all methods in the place of `all`, each once.

    Raises:
        VictorError: If one is not known.
    """
    everyone = [VICTOR, *methods.names()]
    found = list(dict.fromkeys(one for name in names for one in _several(name, everyone)))
    if not found:
        raise VictorError("--methods names none", fix="name some: --methods victor,fastv,pool")
    for name in found:
        if name != VICTOR:
            methods.method(name)
    return found


def _several(name: str, everyone: Sequence[str]) -> list[str]:
    """Read `all`, but for what needs something of the user or shows no picture."""
    if name != "all":
        return [name]
    return [each for each in everyone if each == VICTOR or not methods.method(each).extras]


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
        "settings": {},
    }
    return {"methods": [own, *(_described(name) for name in methods.names())]}


def _described(name: str) -> dict[str, Any]:
    cls = methods.method(name)
    settings = {key: field.default for key, field in cls.model_fields.items() if key != "seed"}
    return {
        "method": name,
        "stage": cls.stage,
        "training": "none",
        "knob": cls.knob or "the picture",
        "source": cls.source,
        "unverified": list(cls.unverified),
        "settings": settings,
    }
