import re

import pytest

from tests import pages
from tests.converting import run


@pytest.mark.parametrize("page", pages.blocks(), ids=lambda page: page.stem)
def test_the_generated_part_of_a_page_is_what_the_code_says(page, request):
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    title = f"victorctl {page.stem}" if page.parent.name == "commands" else page.stem
    wanted = pages.refresh(text, title, pages.blocks()[page])
    if request.config.getoption("--update-docs"):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(wanted, encoding="utf-8")
    else:
        assert text == wanted, "run: pytest --update-docs tests/test_docs.py"


def test_the_example_of_the_readme_answers_a_question(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    text = pages.README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    run("demo", tmp_path / "model")

    exec(code.replace("victor-demo/model", str(tmp_path / "model")), {})

    assert capsys.readouterr().out.strip()  # untrained, it says something


def test_every_command_has_a_page_and_every_page_a_command():
    known = {page for page in pages.blocks() if page.parent.name == "commands"}
    assert known == set((pages.DOCS / "commands").glob("*.md"))
    assert len(known) == 16


def test_every_page_has_words_written_by_hand():
    for page in pages.blocks():
        before, _, rest = page.read_text(encoding="utf-8").partition(pages.BEGIN)
        assert len((before + rest.partition(pages.END)[2]).split()) > 30, page.name


def test_links_between_pages_lead_somewhere():
    links = [
        (page, link)
        for page in [*pages.DOCS.rglob("*.md"), *pages.DOCS.parent.glob("*.md")]
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert len(links) >= 8
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_architecture_names_every_file_once_and_none_that_is_not_there():
    page = (pages.DOCS / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Where is")[2].partition("Imports go one way")[0]
    named = re.findall(r"`((?:\w+/)*(?:\w+\.py|\w+/))`", table)
    package = pages.DOCS.parent / "victorctl"
    folders = tuple(name for name in named if name.endswith("/"))
    ours = {file.relative_to(package).as_posix() for file in package.rglob("*.py")}
    ours = {file for file in ours if not file.startswith(folders) and "__init__" not in file}

    assert len(ours) > 40
    assert {file for file in ours if named.count(file) != 1} == set()
    for name in set(named) - ours:
        assert any((place / name).exists() for place in (package, package.parent)), name


def test_an_option_is_shown_with_its_value_meaning_and_default():
    block = pages.blocks()[pages.DOCS / "commands" / "convert.md"]

    assert "```shell\nvictorctl convert llava-hf/llava-1.5-7b-hf --out victor-7b\n```" in block
    assert (
        "| `SOURCE` | Folder or Hub id of a model, or demo: the one that comes along. Required. |"
        in block
    )
    assert "| `--registers N` | Registers put after each image (M). (default 8) |" in block
    assert "| `--positions overlay\\|append` | " in block
    assert "| `--set KEY=VALUE` | " in block
    assert "| `--dry-run` | " in block
    assert "| `--attn sdpa\\|eager` | Attention. (default sdpa) |" in block


def test_refreshing_a_page_keeps_what_was_written_by_hand():
    once = pages.refresh("", "title", "old")
    written = once.replace("# title", "# Title\n\nBefore.") + "\nAfter.\n"

    assert once == f"# title\n\n{pages.BEGIN}\n\nold\n\n{pages.END}\n"
    assert pages.refresh(written, "title", "new") == (
        f"# Title\n\nBefore.\n\n{pages.BEGIN}\n\nnew\n\n{pages.END}\n\nAfter.\n"
    )
