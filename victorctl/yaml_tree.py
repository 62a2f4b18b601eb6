"""Read YAML into nested settings that know where each key was given."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from victorctl.errors import VictorError

Key = tuple[str, ...]

_DEEPEST = 8  # far deeper than any recipe; a YAML alias may point at its own parent

_LINES = "write one `key: value` on each line, and indent the keys of a section alike"
_MISTAKES = (  # what PyYAML says, whether to name the line where it began, our words, a way out
    (r"character '\\t'", False, "a tab, where YAML takes spaces", "replace the tab with spaces"),
    (r"character '(.)' that", False, "a value starts with {0}", "put the value in quotes"),
    (r"alias '(.*)'", False, "a value starts with *", "put the value in quotes"),
    (r"expected ',' or|node content", False, "brackets or commas that do not match",
     "close every { and [, and put commas between what is inside"),
    (r"unexpected end of stream", True, "a quote that is never closed", "close the quote"),
    (r"escape", False, "a backslash inside double quotes", "use single quotes"),
    (r"could not find expected ':'", True, "a key without a colon", _LINES),
    (r"not allowed here|<block end>", False, "a line that does not fit those above it",
     f"{_LINES}; quote a value that holds a colon"),
    (r"another document|<document start>", False, "a second recipe in one file",
     "remove the `---` or `...`, and what does not belong here"),
    (r"unhashable|constructor", False, "YAML that recipes have no use for",
     "write plain keys and values, with no tags and no brackets in keys"),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Keeps every plain scalar but null as text: the type of its field decides what it means.

    YAML 1.1 would read `2e-4` as text, `no` as false, `012` as ten and `1:30` as ninety.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own way of saying it)
        first: [pair for pair in pairs if pair[0] == "tag:yaml.org,2002:null"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "str", "seq", "map")
    }


class Origin(NamedTuple):
    """Where a key was given; origins sort as one reads: the file's lines, then what was typed."""

    rank: tuple[int, int]
    place: str

    @property
    def typed(self) -> bool:
        """Whether it stood on the command line, so that the place shows key and value."""
        return self.rank[0] == 1


@dataclass
class YamlTree:
    """Nested settings, where each key was given, and what is wrong with the writing itself."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)
    problems: list[tuple[Origin, str]] = field(default_factory=list)

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
            raise _not_yaml(error, text, str(path)) from error
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

    def put(self, key: Key, value: object, place: str) -> None:
        """Set one key over whatever was there; what is put later wins."""
        origin = Origin((1, len(self.origins)), place)
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

    def origin(self, key: Key) -> Origin:
        """Where a key, or else the nearest section around it, was given."""
        prefixes = (key[:depth] for depth in range(len(key), 0, -1))
        found = (self.origins[prefix] for prefix in prefixes if prefix in self.origins)
        return next(found, Origin((0, 0), "recipe"))

    def _locate(self, node: yaml.MappingNode, above: Key, path: Path) -> None:
        for name, value in node.value:
            key = (*above, str(name.value))
            line = name.start_mark.line + 1
            origin = Origin((0, line), f"{path}:{line}")
            if key in self.origins:
                first = self.origins[key].place
                self.problems.append((origin, f"'{'.'.join(key)}' was already given at {first}"))
            self.origins[key] = origin
            if isinstance(value, yaml.MappingNode) and len(key) < _DEEPEST:
                self._locate(value, key, path)


def parse_value(text: str, place: str) -> Any:
    """Read one value with the rules of a file; nothing at all is null.

    Raises:
        VictorError: If the text is not YAML; `place` says where it was given.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(error, "", place) from error


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        wrong = "a folder, not a recipe" if path.is_dir() else str(error.strerror).lower()
        raise VictorError(
            f"{path}: {wrong}", fix="give a YAML file, or one of ours by name: victorctl recipes"
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise VictorError(
            f"{path}:{line}: not UTF-8 text", fix="save the file as UTF-8 in your editor"
        ) from error


def _not_yaml(error: yaml.YAMLError, text: str, place: str) -> VictorError:
    """Say in plain words what is wrong, and in which line of a file."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position)
        words, fix = f"a control character ({error.character:#04x})", "remove the character"
    else:
        found, began, words, fix = _mistake(error.problem or "")
        mark = (began and error.context_mark) or error.problem_mark
        line, words = mark.line, words.format(*found)
    return VictorError(f"{place}:{line + 1}: {words}" if text else f"{place}: {words}", fix=fix)


def _mistake(problem: str) -> tuple[tuple[str, ...], bool, str, str]:
    for pattern, began, words, fix in _MISTAKES:
        if found := re.search(pattern, problem):
            return found.groups(), began, words, fix
    return (), False, "not YAML", _LINES
