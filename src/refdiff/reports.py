"""A report as one HTML page that needs nothing beside it: style, pictures and script are inside.

In: a `Page` of plain text, tables, PNG files and drawings. Out: HTML; every text is escaped here, but for
a `Drawing`'s, whose maker did. It is laid out for a phone first, and follows the reader's light or dark
setting.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One field of a table."""

    text: str
    tone: Tone = "plain"
    numeric: bool = False
    """Flush right, in figures of one width."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a head; a row may be shorter than the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    wraps: bool = False
    """Long texts take several lines; otherwise the table is as wide as it needs, and scrolls."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a figure."""

    png: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Pictures side by side under a title and a line of numbers."""

    title: str
    line: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """HTML that something else made, and escaped."""

    html: str
    style: str = ""
    script: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    heading: str
    lines: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything the reader sees, in its order."""

    title: str
    passed: bool | None
    """None where nothing was judged."""
    verdict: str
    """One sentence, first on the page."""
    sections: tuple[Section, ...]


def render(page: Page) -> str:
    """The page as HTML."""
    tone = {True: "good", False: "bad", None: "plain"}[page.passed]
    judged = {True: "<strong>passed</strong> ", False: "<strong>FAILED</strong> ", None: ""}[page.passed]
    drawings = [drawing for section in page.sections for drawing in section.drawings]
    style = "".join(dict.fromkeys((_STYLE, *(drawing.style for drawing in drawings))))
    scripts = "".join(
        f"<script>{each}</script>\n" for each in dict.fromkeys(d.script for d in drawings) if each
    )
    body = "\n".join(_section(section) for section in page.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(page.title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{_text(page.title)}</h1>
<p class="verdict {tone}">{judged}{_text(page.verdict)}</p>
{body}
</main>
{scripts}</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{_text(section.heading)}</h2>"]
    parts += [f"<p>{_text(line)}</p>" for line in section.lines]
    parts += [drawing.html for drawing in section.drawings]
    parts += [_table(table) for table in section.tables]
    parts += [_figure(figure) for figure in section.figures]
    return f"<section>\n{chr(10).join(parts)}\n</section>"


def _table(table: Table) -> str:
    numeric = _numeric_columns(table)
    head = "".join(
        f"<th{_classes('number' if column in numeric else '')}>{_text(name)}</th>"
        for column, name in enumerate(table.head)
    )
    rows = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    caption = f"<caption>{_text(table.title)}</caption>\n" if table.title else ""
    inside = f"{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<div class="wide"><table{_classes("wraps" if table.wraps else "")}>\n{inside}\n</table></div>'


def _numeric_columns(table: Table) -> set[int]:
    return {column for row in table.rows for column, cell in enumerate(row) if cell.numeric}


def _cell(cell: Cell) -> str:
    tone = "" if cell.tone == "plain" else cell.tone
    return f"<td{_classes('number' if cell.numeric else '', tone)}>{_text(cell.text)}</td>"


def _figure(figure: Figure) -> str:
    pictures = "\n".join(_picture(picture) for picture in figure.pictures)
    return (
        f'<article>\n<h3>{_text(figure.title)}</h3>\n<p class="line">{_text(figure.line)}</p>\n'
        f'<div class="pictures">\n{pictures}\n</div>\n</article>'
    )


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = _text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _classes(*names: str) -> str:
    return _attribute("class", [name for name in names if name])


def _attribute(name: str, values: Sequence[str]) -> str:
    return f' {name}="{" ".join(values)}"' if values else ""


def _text(text: str) -> str:
    """Safe between tags and inside a quoted attribute."""
    return escape(text, quote=True)


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f8; --card: #ffffff; --ink: #1c1d22; --pale: #5d6170; --line: #d9dae0;
  --good: #14783c; --good-page: #e3f3e8; --bad: #b22c28; --bad-page: #fbe7e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16171b; --card: #202127; --ink: #e8e9ee; --pale: #a2a6b4; --line: #383a44;
    --good: #6fcf97; --good-page: #17301f; --bad: #ff8a80; --bad-page: #3b1a1a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem; margin: 1rem 0; }
.verdict { padding: .8rem 1rem; border-radius: .6rem; }
.verdict.good { background: var(--good-page); }
.verdict.plain { background: var(--card); border: 1px solid var(--line); }
.verdict.bad { background: var(--bad-page); }
.verdict strong { margin-right: .5rem; }
.good, .verdict.good strong { color: var(--good); }
.bad, .verdict.bad strong { color: var(--bad); }
p.verdict { color: var(--ink); }
td.bad { font-weight: 600; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .875rem; min-width: 100%; }
caption { text-align: left; font-weight: 600; padding: .6rem 0 .2rem; overflow-wrap: anywhere; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
.wraps td:last-child { white-space: normal; overflow-wrap: anywhere; }
th { color: var(--pale); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
article { border-top: 1px solid var(--line); padding: .8rem 0; }
.line, figcaption { color: var(--pale); font-size: .875rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
figure { margin: 0; }
@media (max-width: 48rem) {
  .pictures { grid-template-columns: 1fr 1fr; }
  figure:first-child:nth-last-child(odd) { grid-column: 1 / -1; }
}
img { display: block; width: 100%; height: auto; border-radius: .3rem; }
"""
