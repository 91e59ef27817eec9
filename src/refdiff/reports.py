"""Reports as values, laid out once: tables and pages with a renderer for the terminal and one for HTML.

A verb's room builds a `Table`, a `Section` or a `Page` from its report. `to_rich` renders it for a terminal;
`Page.to_html` makes one file with style and images inside, every text escaped, laid out for a phone first, in
the reader's light or dark setting. rich is imported when something is rendered for the terminal, not before.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

Tone = Literal["plain", "good", "bad"]

_RICH_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "bold red"}


class Printable(Protocol):
    """Something the terminal can show: a `Table`, a `Section` or a `Page`."""

    def to_rich(self) -> RenderableType:
        """Return a rich renderable."""
        ...


@dataclass(frozen=True)
class Column:
    """A column of a table and how its cells are set."""

    name: str = ""
    numeric: bool = False
    """Right-aligned, in figures of one width."""
    wrap: bool = False
    """Long texts take several lines; otherwise a cell stays on one line."""
    grouped: bool = False
    """A value equal to that of the row above is left blank."""


def numeric(*names: str) -> tuple[Column, ...]:
    """Return one numeric column per name."""
    return tuple(Column(name, numeric=True) for name in names)


@dataclass(frozen=True)
class Cell:
    """A field of a table that is more than plain text."""

    text: str
    tone: Tone = "plain"


def outcome(*, passed: bool) -> Cell:
    """Return the cell that says whether a limit was kept."""
    return Cell("ok", "good") if passed else Cell("FAILED", "bad")


Row = Sequence["Cell | str"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns; a row may be shorter than the columns are many."""

    columns: Sequence[Column]
    """Without any name, the table has no head."""
    rows: Sequence[Row]
    title: str = ""
    footnotes: Sequence[str] = ()

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows as cells, repeated values of grouped columns left blank."""
        rows = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in self.rows]
        return [
            [
                Cell("") if self.columns[at].grouped and above[: at + 1] == row[: at + 1] else cell
                for at, cell in enumerate(row)
            ]
            for above, row in zip([[], *rows], rows, strict=False)
        ]

    def to_rich(self) -> RenderableType:
        """Return the title, the table and the footnotes for the terminal."""
        return _group(*([self.title] if self.title else []), self._rich_table(), *self.footnotes)

    def _rich_table(self) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        named = any(column.name for column in self.columns)
        table = RichTable(box=box.SIMPLE_HEAD if named else None, show_header=named, pad_edge=False)
        for column in self.columns:
            table.add_column(
                column.name,
                justify="right" if column.numeric else "left",
                no_wrap=not (column.wrap or column.numeric),
                overflow="fold",
            )
        for row in self.cells:
            table.add_row(*(Text(cell.text, style=_RICH_STYLES[cell.tone]) for cell in row))
        return table

    def to_html(self) -> str:
        """Return the table as HTML, with its title and footnotes."""
        head = "".join(f"<th{_column_class(each)}>{_text(each.name)}</th>" for each in self.columns)
        rows = "\n".join(f"<tr>{self._html_row(row)}</tr>" for row in self.cells)
        caption = f"<caption>{_text(self.title)}</caption>\n" if self.title else ""
        body = f"{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
        notes = "".join(f'\n<p class="line">{_text(note)}</p>' for note in self.footnotes)
        return f'<div class="wide"><table>\n{body}\n</table></div>{notes}'

    def _html_row(self, row: Sequence[Cell]) -> str:
        return "".join(
            f"<td{_column_class(column, cell.tone)}>{_text(cell.text)}</td>"
            for column, cell in zip(self.columns, row, strict=False)
        )


def facts_table(facts: Iterable[tuple[str, str]], *, title: str = "", footnotes: Sequence[str] = ()) -> Table:
    """Build a table of names and values without a head."""
    columns = (Column(), Column(wrap=True))
    return Table(columns=columns, rows=tuple(facts), title=title, footnotes=footnotes)


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
            f"<title>{_text(name)} {share:.1%}</title></rect>"
            for (name, share), begin, hue in zip(self.shares, begins, hues, strict=False)
        )
        key = "".join(
            f'<li><svg viewBox="0 0 1 1"><rect width="1" height="1" fill="hsl({hue} 55% 55%)"/></svg>'
            f"{_text(name)} {share:.1%}</li>"
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
        caption = _text(self.caption)
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
            f'<article>\n<h3>{_text(self.title)}</h3>\n<p class="line">{_text(self.line)}</p>\n'
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
        return _group(*heading, *self.lines, *(table.to_rich() for table in self.tables))

    def to_html(self) -> str:
        """Return the section as HTML."""
        lines = (*self.lines, self.explanation) if self.explanation else self.lines
        parts = [f"<h2>{_text(self.heading)}</h2>"]
        parts += [f"<p>{_text(line)}</p>" for line in lines]
        parts += [bar.to_html() for bar in self.bars]
        parts += [table.to_html() for table in self.tables]
        parts += [figure.to_html() for figure in self.figures]
        return f"<section>\n{chr(10).join(parts)}\n</section>"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole report: the verdict stands first on the page and last on the terminal."""

    title: str
    passed: bool | None
    """None where nothing was judged."""
    verdict: str
    """One sentence."""
    sections: Sequence[Section]

    def to_rich(self) -> RenderableType:
        """Return title, sections and verdict for the terminal."""
        from rich.text import Text

        word, tone = _judgement(passed=self.passed)
        parts: list[RenderableType] = [self.title]
        for section in self.sections:
            if not section.figures:
                parts += ["", section.to_rich()]
        return _group(*parts, "", Text.assemble((word, _RICH_STYLES[tone]), self.verdict))

    def to_html(self) -> str:
        """Return the page as one HTML document."""
        word, tone = _judgement(passed=self.passed)
        judged = f"<strong>{word.strip()}</strong>" if word else ""
        body = "\n".join(section.to_html() for section in self.sections)
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(self.title)}</title>
<style>{_style()}</style>
</head>
<body>
<main>
<h1>{_text(self.title)}</h1>
<p class="verdict {tone}">{judged}{_text(self.verdict)}</p>
{body}
</main>
</body>
</html>
"""


def size_text(size_bytes: float) -> str:
    """Return a number of bytes in kB, MB or GB (powers of 1000), three figures long."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


def _judgement(*, passed: bool | None) -> tuple[str, Tone]:
    if passed is None:
        return "", "plain"
    return ("passed ", "good") if passed else ("FAILED ", "bad")


def _group(*parts: RenderableType) -> RenderableType:
    from rich.console import Group

    return Group(*parts)


def _style() -> str:
    return resources.files("refdiff").joinpath("reports.css").read_text(encoding="utf-8")


def _column_class(column: Column, tone: Tone = "plain") -> str:
    names = {"number": column.numeric, "wrap": column.wrap, tone: tone != "plain"}
    used = " ".join(name for name, wanted in names.items() if wanted)
    return f' class="{used}"' if used else ""


def _text(text: str) -> str:
    """Return the text safe between tags and inside a quoted attribute."""
    return escape(text, quote=True)
