"""What an error tells a user to type exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from victorctl import cli

FILES = sorted(Path(cli.__file__).parent.rglob("*.py"))
COMMAND = re.compile(r"victorctl ([a-z]+)((?: (?![a-z]+ing\b|or\b|and\b)[^\s;,]+)*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def text_of(node: ast.AST, constants: dict[str, ast.AST]) -> str:
    """Put the strings of an expression together; `X` stands for what is known only at run time."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in constants:
        return text_of(constants[node.id], constants)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, constants) if isinstance(node.value, ast.Name) else "X"
    if isinstance(node, ast.IfExp | ast.BoolOp | ast.BinOp | ast.Tuple | ast.List | ast.Dict):
        return " ; ".join(text_of(part, constants) for part in ast.iter_child_nodes(node))
    return "X"


def fixes() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every way out that the package names."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    constants = {
        target.id: node.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant | ast.JoinedStr)
    }
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "fix":
                yield f"{file.name}:{node.value.lineno}", text_of(node.value, constants)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "fix":
                yield f"{file.name}:{node.lineno}", text_of(node.value, constants)


def options() -> dict[str, set[str]]:
    """Map each command to its options; a group has those of its subcommands."""
    found = {}
    for name, command in typer.main.get_command(cli.app).commands.items():
        every = [command, *getattr(command, "commands", {}).values()]
        params = [param for one in every for param in one.params]
        found[name] = {flag for param in params for flag in (*param.opts, *param.secondary_opts)}
    return found


def wrong_in(text: str) -> list[str]:
    """List the commands and options in a text that do not exist."""
    known = options()
    wrong = [f"victorctl {name}" for name, _ in COMMAND.findall(text) if name not in known]
    for name, rest in COMMAND.findall(text):
        of_command = known.get(name, set())
        wrong += [f"{name} {flag}" for flag in FLAG.findall(rest) if flag not in of_command]
    outside = COMMAND.sub("", text)
    return wrong + [
        flag for flag in FLAG.findall(outside) if flag not in set().union(*known.values())
    ]


def test_every_fix_names_commands_and_options_that_exist():
    found = list(fixes())
    assert len(found) > 80
    assert sum("victorctl " in text for _, text in found) > 5
    assert sum("--" in text for _, text in found) > 25
    assert [(place, wrong) for place, text in found if (wrong := wrong_in(text))] == []


def test_every_command_line_in_the_docs_can_be_typed():
    root = FILES[0].parent.parent
    lines = [
        line.partition(" #")[0]
        for page in [root / "README.md", *(root / "docs").rglob("*.md")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("victorctl ")
    ]
    assert len(lines) > 20
    assert [(line, wrong) for line in lines if (wrong := wrong_in(line))] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("victorctl konvert X --out FOLDER", ["victorctl konvert", "konvert --out"]),
        ("victorctl convert X --out FOLDER, and --base FOLDER", []),  # eval's own
        ("victorctl convert X --data FOLDER", ["convert --data"]),
        ("victorctl recipes keys X --overwrite", []),
        ("add --overwrites, or --resume", ["--overwrites"]),
        ("see victorctl doctor", []),
    ],
)
def test_a_fix_that_cannot_be_typed_is_seen(text, wrong):
    assert wrong_in(text) == wrong
