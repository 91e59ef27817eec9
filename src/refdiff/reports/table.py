"""Tables as values, laid out once, with a renderer for the terminal and one for HTML.

A verb's room builds a `Table` from its report. rich is imported when something is rendered for the terminal,
not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Literal, Protocol

from refdiff.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

Tone = Literal["plain", "good", "warn", "bad"]

RICH_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "warn": "yellow", "bad": "bold red"}

_WORD = 24
"""Cells of the longest word that a column keeps whole where room is short; a path is longer."""

_GAP = 2
"""Cells between two columns."""


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
    """Right-aligned, in figures of one width, on one line."""
    wrap: bool = False
    """Long texts take several lines, broken between words; otherwise a cell stays on one line."""
    grouped: bool = False
    """A value equal to that of the row above is left blank."""
    optional: int = 0
    """0: always shown. Otherwise left out where the terminal is too narrow, the highest first."""


def numeric(*names: str, optional: int = 0) -> tuple[Column, ...]:
    """Return one numeric column per name."""
    return tuple(Column(name, numeric=True, optional=optional) for name in names)


@dataclass(frozen=True)
class Cell:
    """A field of a table that is more than plain text."""

    text: str
    tone: Tone = "plain"


def outcome(*, passed: bool | None) -> Cell:
    """Return the cell that says whether a limit was kept; None: there were too few samples to judge it."""
    if passed is None:
        return Cell("too few", "warn")
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
        given = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in self.rows]
        rows = [[replace(cell, text=printable(cell.text)) for cell in row] for row in given]
        return [
            [
                Cell("") if self.columns[at].grouped and above[: at + 1] == row[: at + 1] else cell
                for at, cell in enumerate(row)
            ]
            for above, row in zip([[], *rows], rows, strict=False)
        ]

    def to_rich(self) -> RenderableType:
        """Return the title, the table and the footnotes for the terminal."""
        return group(*([self.title] if self.title else []), _RichTable(self), *self.footnotes)

    def fit(self, width: int, *, keep_all: bool = False) -> tuple[dict[int, int], tuple[str, ...]]:
        """Choose the columns that fit, and their widths.

        Optional columns are left out, the last of the highest `optional` first, until the others fit; then
        the widest of the columns that wrap becomes narrower, never below its longest word or `_WORD`.

        Args:
            width: cells in all.
            keep_all: leave no column out and break no word, even if the table becomes wider.

        Returns:
            Place of each column that is shown -> its cells, and the names of those left out.
        """
        rows = self.cells
        texts = [[column.name, *(row[at].text for row in rows if at < len(row))]
                 for at, column in enumerate(self.columns)]  # fmt: skip
        wanted = {at: max(map(_line_cells, each)) for at, each in enumerate(texts)}
        least = {
            at: max(_word_cells(text, longest=None if keep_all else _WORD) for text in each)
            if self.columns[at].wrap
            else max(_word_cells(each[0]), *map(_line_cells, each[1:]), 0)
            for at, each in enumerate(texts)
        }
        hidden: list[int] = []
        for at in sorted(wanted, key=lambda at: (-self.columns[at].optional, -at)):
            shown = [each for each in wanted if each not in hidden]
            if keep_all or not self.columns[at].optional or _total(least[each] for each in shown) <= width:
                break
            hidden.append(at)
        widths = {at: wanted[at] for at in wanted if at not in hidden}
        narrow = {at: least[at] for at in widths}
        while _total(widths.values()) > width and widths != narrow:
            widths[max((at for at in widths if widths[at] > narrow[at]), key=lambda at: widths[at])] -= 1
        return widths, tuple(self.columns[at].name for at in sorted(hidden))

    def to_html(self) -> str:
        """Return the table as HTML, with its title and footnotes."""
        head = "".join(f"<th{_column_class(each)}>{html_text(each.name)}</th>" for each in self.columns)
        rows = "\n".join(f"<tr>{self._html_row(row)}</tr>" for row in self.cells)
        caption = f"<caption>{html_text(self.title)}</caption>\n" if self.title else ""
        body = f"{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
        notes = "".join(f'\n<p class="line">{html_text(note)}</p>' for note in self.footnotes)
        return f'<div class="wide"><table>\n{body}\n</table></div>{notes}'

    def _html_row(self, row: Sequence[Cell]) -> str:
        return "".join(
            f"<td{_column_class(column, cell.tone)}>{html_text(cell.text)}</td>"
            for column, cell in zip(self.columns, row, strict=False)
        )


def facts_table(facts: Iterable[tuple[str, str]], *, title: str = "", footnotes: Sequence[str] = ()) -> Table:
    """Build a table of names and values without a head."""
    columns = (Column(), Column(wrap=True))
    return Table(columns=columns, rows=tuple(facts), title=title, footnotes=footnotes)


def size_text(size_bytes: float) -> str:
    """Return a number of bytes in kB, MB or GB (powers of 1000), three figures long."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


def group(*parts: RenderableType) -> RenderableType:
    """Return the parts one below the other; strings are texts, never markup."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(printable(part)) if isinstance(part, str) else part for part in parts))


class _RichTable:
    """Renders a table for the terminal that asks: columns are chosen by its width.

    What is no terminal gets every column, and no word is broken there: a script may look for it.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType | Segment]:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        columns, rows = self._table.columns, self._table.cells
        widths, hidden = self._table.fit(options.max_width, keep_all=not console.is_terminal)
        named = any(column.name for column in columns)
        drawn = RichTable(
            box=box.SIMPLE_HEAD if named else None,
            show_header=named,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            padding=(0, _GAP - 1 if named else _GAP),
        )
        for at, width in widths.items():
            drawn.add_column(
                Text(columns[at].name),
                width=width,
                justify="right" if columns[at].numeric else "left",
            )
        for row in rows:
            drawn.add_row(
                *(Text(row[at].text, style=RICH_STYLES[row[at].tone]) for at in widths if at < len(row))
            )
        yield from console.render(
            drawn, options.update_width(max(options.max_width, _total(widths.values())))
        )
        if hidden:
            count = "1 column" if len(hidden) == 1 else f"{len(hidden)} columns"
            yield Text(
                f"{count} hidden: {', '.join(filter(None, hidden))}; widen the terminal or use --json",
                style="dim",
            )


def _line_cells(text: str) -> int:
    """Return the cells of the longest line."""
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def _word_cells(text: str, longest: int | None = None) -> int:
    """Return the cells of the longest word, but `longest` at most."""
    cells = max(map(_line_cells, text.split()), default=0)
    return cells if longest is None else min(longest, cells)


def _total(widths: Iterable[int]) -> int:
    """Return the cells of columns of these widths with the gaps between them."""
    every = tuple(widths)
    return sum(every) + _GAP * (len(every) - 1)


def _column_class(column: Column, tone: Tone = "plain") -> str:
    names = {"number": column.numeric, "wrap": column.wrap, tone: tone != "plain"}
    used = " ".join(name for name, wanted in names.items() if wanted)
    return f' class="{used}"' if used else ""


def html_text(text: str) -> str:
    """Return the text safe between tags and inside a quoted attribute."""
    return escape(text, quote=True)
