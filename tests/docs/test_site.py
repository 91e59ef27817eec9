"""The documentation site: its generated pages are complete."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import refdiff

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cli_reference() -> ModuleType:
    path = ROOT / "docs" / "hooks" / "cli_reference.py"
    spec = importlib.util.spec_from_file_location("cli_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as MkDocs does; dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_has_a_section_for_every_command(cli_reference):
    from refdiff.cli import app

    registered = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(cli_reference.sections()) == registered


def test_the_command_reference_shows_flags_types_and_defaults(cli_reference):
    section = cli_reference.sections()["segment"]
    assert "refdiff segment BUNDLE" in section
    assert "| `--output`, `-o` | path |" in section
    assert "| `--json` | flag |" in section
    assert re.search(r"\| `--seed` \| integer, ≥ 0 \| `0` \|", section)


def test_the_marker_of_the_command_reference_is_in_its_page(cli_reference):
    assert cli_reference.MARKER in (ROOT / "docs" / cli_reference.PAGE).read_text(encoding="utf-8")


def test_every_public_name_is_in_the_python_reference():
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: refdiff\.(\w+)$", page, flags=re.MULTILINE))
    assert documented == set(refdiff.__all__) - {"__version__"}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = (path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    assert [page for page in pages if page not in navigation] == []
