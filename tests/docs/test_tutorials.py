"""Tutorials run as written: Python blocks, text files and `refdiff` commands, page by page and in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from refdiff.cli import main

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
_BLOCK = re.compile(r"(<!-- not run -->\n)?```(python|sh|text)\n(.*?)```", flags=re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block that is not marked as not run."""
    return [(language, text) for marked, language, text in _BLOCK.findall(page) if not marked]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in TUTORIALS.glob("*.md")))
def test_every_block_of_a_tutorial_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for language, text in blocks((TUTORIALS / name).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, name, "exec"), namespace)  # noqa: S102 - our own documentation
        elif language == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "refdiff"
                assert main(arguments) == 0, line
        elif text.startswith("image,phrase\n"):
            (tmp_path / "phrases.csv").write_text(text, encoding="utf-8")


def test_a_marked_block_is_left_out():
    assert blocks("<!-- not run -->\n```sh\nrm -rf /\n```\n```python\nx = 1\n```\n") == [
        ("python", "x = 1\n")
    ]
