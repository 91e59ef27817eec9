"""What the documentation names exists: modules, commands with their options, make targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from refdiff.cli.entry import app

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = {"CHANGELOG.md"}
"""Pages that may name what no longer exists."""

_FENCED = re.compile(r"```sh\n(.*?)```", flags=re.DOTALL)
_INDENTED = re.compile(r"^    (refdiff .*)$", flags=re.MULTILINE)
_INLINE = re.compile(r"`(refdiff [a-z][^`]*)`")
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|json|toml))`")


def commands(page: str, verbs: Iterable[str]) -> Iterator[str]:
    """Yield the command lines that start with `refdiff`; in running text, those of an existing verb only."""
    for block in _FENCED.findall(page):
        yield from (line.strip() for line in block.splitlines() if line.strip().startswith("refdiff "))
    yield from _INDENTED.findall(page)
    yield from (command for command in _INLINE.findall(page) if command.split()[1] in verbs)


def known_flags() -> dict[str, set[str]]:
    root = typer.main.get_command(app)
    return {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in root.commands.items()
    }


def flags(command: str) -> list[str]:
    words = shlex.split(command.replace("'", " "), comments=True)
    if "--" in words:  # what follows is for another program
        words = words[: words.index("--")]
    return [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def test_every_command_and_option_in_the_documentation_exists():
    known, wrong = known_flags(), []
    for page in PAGES:
        if page.name in HISTORY:
            continue
        for command in commands(page.read_text(encoding="utf-8"), known):
            verb = command.split()[1]
            unknown = [flag for flag in flags(command) if flag not in known.get(verb, set())]
            if verb not in known or unknown:
                wrong.append(f"{page.relative_to(ROOT)}: {command}: {unknown or verb}")
    assert not wrong


def test_every_file_in_the_documentation_exists():
    places = (ROOT, ROOT / "src" / "refdiff", ROOT / "benchmarks")
    wrong = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        if page.name not in HISTORY
        for path in _PATH.findall(page.read_text(encoding="utf-8"))
        if not path.startswith(("BUNDLE/", "OUTPUT/"))
        and not any((place / path).exists() for place in places)
    ]
    assert not wrong
