"""Read YAML into nested settings that know where each key was given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from victorctl.errors import VictorError

Key = tuple[str, ...]

_DEEPEST = 8  # far deeper than any recipe; a YAML alias may point at its own parent


class _Loader(yaml.SafeLoader):
    """Keeps every plain scalar but null as text: the type of its field decides what it means.

    YAML 1.1 would read `2e-4` as text, `no` as false, `012` as ten and `1:30` as ninety.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own way of saying it)
        first: [pair for pair in pairs if pair[0] == "tag:yaml.org,2002:null"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass
class YamlTree:
    """Nested settings, where each key was given, and what is wrong with the writing itself."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of nested keys; an empty file gives no settings.

        Raises:
            VictorError: If the file cannot be read, is not YAML, or holds no keys at its top.
        """
        text = _text(path)
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            values = {} if root is None else loader.construct_document(root)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise _not_yaml(f"{path}:{mark.line + 1}" if mark else str(path), error) from error
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise VictorError(
                f"{path}:1: expected keys and values, got {values!r}",
                fix="write lines such as `seed: 0`; `victorctl recipes keys` lists the keys",
            )
        tree = cls(values)
        if root is not None:
            tree._locate(root, (), path)
        return tree

    def put(self, key: Key, value: object, origin: str) -> None:
        """Set one key over whatever was there; later origins win."""
        section = self.values
        for depth, name in enumerate(key[:-1], start=1):
            if section.get(name) is None:
                section[name] = {}
            self.origins.setdefault(key[:depth], origin)
            section = section[name]
            if not isinstance(section, dict):  # stays as it is, to be reported as no section
                return
        section[key[-1]] = value
        self.origins[key] = origin

    def origin(self, key: Key) -> str:
        """Where a key, or else the nearest section around it, was given; '' if nowhere."""
        prefixes = (key[:depth] for depth in range(len(key), 0, -1))
        return next((self.origins[prefix] for prefix in prefixes if prefix in self.origins), "")

    def _locate(self, node: yaml.MappingNode, above: Key, path: Path) -> None:
        for name, value in node.value:
            key = (*above, str(name.value))
            origin = f"{path}:{name.start_mark.line + 1}"
            if key in self.origins:
                first = self.origins[key]
                self.problems.append(f"{origin}: '{'.'.join(key)}' was already given at {first}")
            self.origins[key] = origin
            if isinstance(value, yaml.MappingNode) and len(key) < _DEEPEST:
                self._locate(value, key, path)


def parse_value(text: str, origin: str) -> Any:
    """Read one value with the rules of a file; nothing at all is null.

    Raises:
        VictorError: If the text is not YAML; `origin` says where it was given.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(origin, error) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise VictorError(
            f"{path}: {reason}", fix="give the path of a recipe; `victorctl recipes` lists ours"
        ) from error


def _not_yaml(place: str, error: yaml.YAMLError) -> VictorError:
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return VictorError(f"{place}: not YAML: {problem}", fix="correct it, or quote the value")
