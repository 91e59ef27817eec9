"""The language of the project: plain English, without the words that this list keeps out.

The list covers code, comments, docstrings, messages, help texts and documentation. Each entry has a plain
replacement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BANNED = {
    "told": "given, reported",
    "anew": "again",
    "mend(?:s|ed|ing)?": "fix",
    "yardsticks?": "reference",
    "errands?": "sample",
    "survey(?:s|ed|ors?)?": "batch",
    "climb(?:s|ed|ing|er)?": "compare",
    "nobody|somebody|whoever": "no one, someone, anyone who",
    "shores?": "boundary",
    "islands?": "fp32 region",
    "needless(?:ly)?": "unnecessary",
    "one'?s own": "its own",
    "at hand": "available",
    "of which": "whose, with",
    "beside": "next to, compared with",
    "(?:is|are|was|were) asked of": "is requested from",
    "strangers?": "unsupported",
    "quantis\\w+": "quantize",
    "normalis\\w+": "normalize",
}
_PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", flags=re.IGNORECASE)
_JOINTS = re.compile(r"_|(?<=[a-z0-9])(?=[A-Z])")

SUFFIXES = {".py", ".md", ".toml", ".yml", ".css", ".js", ""}
PLACES = ("src", "tests", "benchmarks", "docs", "docker")
ALLOWED = {
    "src/refdiff/contracts/recipe.py": "quantised",  # a key of the file format
    "tests/contracts/test_recipe.py": "quantised",
    "src/refdiff/miniature/scenes/phrases.py": "beside",  # words of the phrases that users write
    "src/refdiff/runtime/lexicon.py": "beside nobody somebody",
    "src/refdiff/runtime/phrase.py": "beside",
    "tests/miniature/test_phrases.py": "beside",
    "tests/runtime/test_head.py": "nobody",
    "tests/runtime/test_phrase.py": "beside",
    "tests/runtime/test_small_regions.py": "islands",  # an argument of segment_anything
}
"""File -> the words that it may hold."""


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and word of each banned word, within identifiers too."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _PATTERN.finditer(_JOINTS.sub(" ", line)):
            yield number, match[0]


def written_files() -> Iterator[Path]:
    yield from (
        path for path in ROOT.iterdir() if path.is_file() and path.suffix in {".md", ".toml", ".yml", ""}
    )
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path


def test_no_banned_word_is_written_anywhere():
    found = [
        f"{name}:{number}: {word}"
        for path in written_files()
        if path != Path(__file__) and (name := path.relative_to(ROOT).as_posix())
        for number, word in findings(path.read_text(encoding="utf-8"))
        if word.lower() not in ALLOWED.get(name, "").split()
    ]
    assert not found


def test_no_document_outside_the_repository_is_cited():
    cited = re.compile(r"\b(?:FIELD2?|DESIGN)(?: §|\.md\b)|\bMETHOD\.md\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in written_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if cited.search(line)
    ]
    assert not found


@pytest.mark.parametrize("text", ["_told = 1", "class ErrandList", "mends", "# Nobody's", "on the shore"])
def test_a_banned_word_is_found_in_any_form(text):
    assert list(findings(text))


@pytest.mark.parametrize("text", ["recommend", "besides", "resurveyed land", "untold", "commend_to"])
def test_a_word_that_contains_a_banned_one_is_none(text):
    assert not list(findings(text))


if __name__ == "__main__":  # lists the findings: python tests/docs/test_language.py [PREFIX...]
    import sys

    for path in written_files():
        name = path.relative_to(ROOT).as_posix()
        if path != Path(__file__) and name.startswith(tuple(sys.argv[1:]) or ""):
            for number, word in findings(path.read_text(encoding="utf-8")):
                if word.lower() not in ALLOWED.get(name, "").split():
                    print(f"{name}:{number}: {word}")  # noqa: T201
