"""docs/: the command line's page is the program's own help; links and the index lead somewhere."""

import json
import re
import runpy
from importlib.metadata import version
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_the_table_of_memory_is_what_the_planner_says():
    table = runpy.run_path(str(DOCS / "write_memory.py"))["table"]
    assert table() in (DOCS / "finetuning.md").read_text(), "docs/write_memory.py prints it"


def test_the_table_of_evaluations_is_what_is_computed():
    from smollm3.eval.published import tables

    made = runpy.run_path(str(DOCS / "write_evaluation.py"))
    for table in (made["scores"], made["table"]):
        assert table() in (DOCS / "evaluation.md").read_text(), "docs/write_evaluation.py prints it"
    lines = made["lines"]()
    assert {line.table.partition(",")[0] for line in lines} == {
        known.name for known in tables() if known.name.startswith("smollm3-")
    }
    sizes = json.loads((made["RESULTS"] / "evaluation_sizes.json").read_text())
    for name, counted in sizes.items():
        assert {*counted["tasks"], *counted["not_counted"]} == set(made["suite_of"](name).tasks)


def test_the_command_line_is_described_as_it_is():
    pins = (DOCS.parent / "constraints.txt").read_text()
    if f"click=={version('click')}" not in pins.split():
        pytest.skip("another click lays its help out in another way")
    reference = runpy.run_path(str(DOCS / "write_cli.py"))["reference"]
    assert (DOCS / "cli.md").read_text() == reference(), "make cli-docs writes it again"


def test_every_help_is_a_phrase_that_makes_sense_alone():
    from smollm3.cli import cli

    for name in ("run", "report", "export", "conformance"):
        command = cli.commands[name]
        for option in command.params:
            text = getattr(option, "help", None)
            if text is not None:
                assert not re.match(r"(Of|The same|It|Its|Their|That|For|To|In|On) ", text), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_two_walks_name_files_that_exist():
    text = (DOCS / "architecture.md").read_text()
    for title in ("A training batch, file by file", "A chat request, file by file"):
        walk = text.split(f"## {title}\n")[1].split("\n## ")[0]
        assert len(re.findall(r"^\d\. ", walk, re.MULTILINE)) == 8
        for file in re.findall(r"`([a-z_/]+(?:\.py|/))`", walk):
            assert (DOCS.parent / "src/smollm3" / file).exists(), file


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_glossary_is_in_order_and_says_each_term_once():
    text = (DOCS / "glossary.md").read_text()
    for section in text.split("\n## ")[1:]:
        terms = [term.lower() for term in re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE)]
        assert len(terms) > 3
        assert terms == sorted(terms), section
        assert len(set(terms)) == len(terms)


def test_make_demo_installs_what_the_readme_then_calls():
    """`smollm3 serve` stands right behind `make demo`, and needs its extra."""
    root = DOCS.parent
    first = (root / "README.md").read_text().split("## ")[1]
    assert "make demo" in first
    assert "smollm3 serve runs/nano" in first
    rule = (root / "Makefile").read_text().split("$(VENV)/.installed:")[1].split("touch")[0]
    assert "'.[server]'" in rule
