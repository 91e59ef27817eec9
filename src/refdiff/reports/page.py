"""Sections and pages of a report: what the terminal shows, and one HTML file.

`Page.to_html` makes one file with style and images inside, every text escaped, laid out for a phone first, in
the reader's light or dark setting.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING

from refdiff.reports.table import RICH_STYLES, Table, Tone, group, html_text

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Shares of a whole as one horizontal bar with a key; on the page only."""

    shares: Sequence[tuple[str, float]]
    """Name and share, 0..1, from left to right."""

    def to_html(self) -> str:
        """Return the bar and its key as HTML."""
        begins = [0.0, *accumulate(share for _, share in self.shares)]
        hues = [round(360 * at / len(self.shares)) for at in range(len(self.shares))]
        pieces = "".join(
            f'<rect x="{100 * begin:.3f}" width="{100 * share:.3f}" height="1" fill="hsl({hue} 55% 55%)">'
            f"<title>{html_text(name)} {share:.1%}</title></rect>"
            for (name, share), begin, hue in zip(self.shares, begins, hues, strict=False)
        )
        key = "".join(
            f'<li><svg viewBox="0 0 1 1"><rect width="1" height="1" fill="hsl({hue} 55% 55%)"/></svg>'
            f"{html_text(name)} {share:.1%}</li>"
            for (name, share), hue in zip(self.shares, hues, strict=True)
        )
        bar = f'<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" role="img">{pieces}</svg>'
        return f'{bar}\n<ul class="key">{key}</ul>'


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a figure."""

    png: bytes
    caption: str

    def to_html(self) -> str:
        """Return the image as an HTML figure with its data inside."""
        data = base64.b64encode(self.png).decode("ascii")
        caption = html_text(self.caption)
        source = f"data:image/png;base64,{data}"
        return f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Images side by side under a title and a line of numbers; on the page only."""

    title: str
    line: str
    images: Sequence[Image]

    def to_html(self) -> str:
        """Return the figure as an HTML article."""
        images = "\n".join(image.to_html() for image in self.images)
        return (
            f'<article>\n<h3>{html_text(self.title)}</h3>\n<p class="line">{html_text(self.line)}</p>\n'
            f'<div class="images">\n{images}\n</div>\n</article>'
        )


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what is under it, in the order of these fields; one with figures is on the page only."""

    heading: str = ""
    lines: Sequence[str] = ()
    explanation: str = ""
    """Instructions for reading the tables; on the page only."""
    bars: Sequence[Bar] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()

    def to_rich(self) -> RenderableType:
        """Return heading, lines and tables for the terminal."""
        from rich.text import Text

        heading = [Text(self.heading, style="bold")] if self.heading else []
        return group(*heading, *self.lines, *(table.to_rich() for table in self.tables))

    def to_html(self) -> str:
        """Return the section as HTML."""
        lines = (*self.lines, self.explanation) if self.explanation else self.lines
        parts = [f"<h2>{html_text(self.heading)}</h2>"]
        parts += [f"<p>{html_text(line)}</p>" for line in lines]
        parts += [bar.to_html() for bar in self.bars]
        parts += [table.to_html() for table in self.tables]
        parts += [figure.to_html() for figure in self.figures]
        return f"<section>\n{chr(10).join(parts)}\n</section>"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole report: the verdict stands first on the page and last on the terminal."""

    title: str
    passed: bool | None
    """None where nothing was judged, or not all could be."""
    verdict: str
    """One sentence."""
    sections: Sequence[Section]
    undecided: bool = False
    """True where nothing failed, but there were too few samples to judge all."""

    def to_rich(self) -> RenderableType:
        """Return title, sections and verdict for the terminal."""
        from rich.text import Text

        word, tone = _judgement(passed=self.passed, undecided=self.undecided)
        parts: list[RenderableType] = [self.title]
        for section in self.sections:
            if not section.figures:
                parts += ["", section.to_rich()]
        return group(*parts, "", Text.assemble((word, RICH_STYLES[tone]), self.verdict))

    def to_html(self) -> str:
        """Return the page as one HTML document."""
        word, tone = _judgement(passed=self.passed, undecided=self.undecided)
        judged = f"<strong>{word.strip()}</strong>" if word else ""
        body = "\n".join(section.to_html() for section in self.sections)
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html_text(self.title)}</title>
<style>{_style()}</style>
</head>
<body>
<main>
<h1>{html_text(self.title)}</h1>
<p class="verdict {tone}">{judged}{html_text(self.verdict)}</p>
{body}
</main>
</body>
</html>
"""


def _judgement(*, passed: bool | None, undecided: bool) -> tuple[str, Tone]:
    if undecided:
        return "undecided ", "warn"
    if passed is None:
        return "", "plain"
    return ("passed ", "good") if passed else ("FAILED ", "bad")


def _style() -> str:
    return resources.files("refdiff.reports").joinpath("page.css").read_text(encoding="utf-8")
