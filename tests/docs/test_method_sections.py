"""Citations of the method: each section that is cited exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CITING = ("src", "tests", "benchmarks", "docs", "docker")
SUFFIXES = {".py", ".md", ".json", ".toml", ".yml", ".css", ".js", ""}

_SECTION = r"§\d+(?:\.\d+)?"
_CITATION = re.compile(rf"METHOD ({_SECTION}(?:(?:,\s+(?:and )?| and | to |–){_SECTION})*)")


def sections(method: str) -> set[str]:
    return set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", method, flags=re.MULTILINE))


def citations(text: str) -> Iterator[str]:
    for match in _CITATION.finditer(text):
        yield from (number.removeprefix("§") for number in re.findall(_SECTION, match[1]))


def sources() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    for folder in CITING:
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in SUFFIXES)
        yield from (path for path in paths if "__pycache__" not in path.parts and path != Path(__file__))


def test_every_cited_section_of_the_method_exists():
    existing = sections((ROOT / "docs" / "method.md").read_text(encoding="utf-8"))
    unknown = [
        f"{path.relative_to(ROOT)}: METHOD §{number}"
        for path in sources()
        for number in citations(path.read_text(encoding="utf-8"))
        if number not in existing
    ]
    assert not unknown


def test_the_check_finds_every_section_of_a_list():
    assert list(citations("as in METHOD §5, §6 and §10.4.")) == ["5", "6", "10.4"]
    assert sections("## 4. Map\n### 4.5 From logits\ntext 4.6 no\n") == {"4", "4.5"}
