"""Reports on the terminal and as one HTML page: everything inside it, every text escaped."""

import base64
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from refdiff.reports.page import Bar, Figure, Image, Page, Section
from refdiff.reports.table import Cell, Column, Printable, Table, facts_table, numeric, size_text

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)

VOID = frozenset({"meta", "img"})


def render(page: Page) -> str:
    return page.to_html()


def on_terminal(printable: Printable, width: int = 80) -> str:
    """What a terminal of this width shows, without the spaces at the ends of lines."""
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(printable.to_rich())
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


class Reading(HTMLParser):
    """What a browser makes of a page: tags, attributes and text; every tag closed in its order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)


def page(text: str = "text", *, passed: bool = True) -> Page:
    """A page with this text wherever a text can be."""
    return Page(
        title=text,
        passed=passed,
        verdict=text,
        sections=(
            Section(
                heading=text,
                lines=(text, text),
                explanation=text,
                bars=(Bar(shares=((text, 0.25), (text, 0.75))),),
                tables=(
                    Table(
                        title=text,
                        columns=(Column(text), *numeric("number")),
                        rows=((Cell(text, "bad"), "1.5"), ()),
                        footnotes=(text,),
                    ),
                    facts_table(((text, text),)),
                ),
                figures=(Figure(title=text, line=text, images=(Image(png=PNG, caption=text),)),),
            ),
            Section(heading="an empty one"),
        ),
    )


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</style></main><b>",
        '" onload="alert(1)',
        "' onerror='alert(1)",
        "&lt;already&gt; & more",
        "-->]]><!--",
    ],
)
def test_a_text_stays_a_text(text):
    plain, read = Reading(render(page())), Reading(render(page(text)))
    assert read.tags == plain.tags
    assert [each[:2] for each in read.attributes] == [each[:2] for each in plain.attributes]
    assert {value for tag, name, value in read.attributes if name == "alt"} == {text}
    assert [each.replace(text, "text") for each in read.texts] == plain.texts


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))
def test_any_text_comes_back_as_it_was(text):
    read = Reading(render(page(text)))
    assert ("img", "alt", text) in read.attributes
    assert text in read.texts


def test_the_page_needs_nothing_else():
    said = render(page("http://example.com/a.png"))
    read = Reading(said)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a"} & set(read.tags)
    for _, name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "style", "srcset", "action")
        if name == "src":
            assert value.startswith("data:image/png;base64,")
    style = re.search("<style>(.*?)</style>", said, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_a_picture_is_in_the_page_byte_for_byte():
    (source,) = (value for _, name, value in Reading(render(page())).attributes if name == "src")
    assert base64.b64decode(source.partition(",")[2]) == PNG


def test_the_verdict_is_a_word_and_not_a_colour_alone():
    good, bad = Reading(render(page())), Reading(render(page(passed=False)))
    assert "passed" in good.texts
    assert "FAILED" in bad.texts
    assert ("p", "class", "verdict good") in good.attributes
    assert ("p", "class", "verdict bad") in bad.attributes


def test_a_column_of_numbers_is_flush_right_with_its_head():
    read = Reading(render(page()))
    assert ("th", "class", "number") in read.attributes
    assert ("td", "class", "number") in read.attributes
    assert ("td", "class", "bad") in read.attributes


def test_the_page_says_its_language_and_fits_a_phone():
    read = Reading(render(page()))
    assert ("html", "lang", "en") in read.attributes
    assert ("meta", "charset", "utf-8") in read.attributes
    assert ("meta", "content", "width=device-width, initial-scale=1") in read.attributes
    assert render(page()).startswith("<!doctype html>\n")
    assert "prefers-color-scheme: dark" in render(page())


TABLE = Table(
    title="a title",
    columns=(Column("graph", grouped=True), Column("output", grouped=True), *numeric("error"), Column()),
    rows=[
        ("unet", "eps", "1", Cell("ok", "good")),
        ("unet", "taps", "20", Cell("FAILED", "bad")),
        ("vae", "taps", "3", Cell("ok", "good")),
    ],
    footnotes=("a note",),
)


def test_a_table_on_the_terminal_shows_title_columns_rows_and_notes():
    assert on_terminal(TABLE).splitlines() == [
        "a title",
        "graph  output  error",
        "────────────────────────────",
        "unet   eps         1  ok",
        "       taps       20  FAILED",
        "vae    taps        3  ok",
        "a note",
    ]


def test_a_repeated_value_is_left_blank_only_in_the_group_it_belongs_to():
    texts = [[cell.text for cell in row[:2]] for row in TABLE.cells]
    assert texts == [["unet", "eps"], ["", "taps"], ["vae", "taps"]]


def test_a_table_without_names_has_no_head():
    assert on_terminal(facts_table((("score", "0.4"), ("area", "12 px")))).splitlines() == [
        "score  0.4",
        "area   12 px",
    ]


def test_brackets_and_colons_of_a_text_reach_the_terminal_as_they_are():
    shown = on_terminal(
        Section(heading="[bold]", lines=(":smile: [red]",), tables=(facts_table((("[/]", ""),)),))
    )
    assert shown.split() == ["[bold]", ":smile:", "[red]", "[/]"]


def test_the_terminal_shows_the_verdict_last_and_no_figures():
    figure = Figure(title="a figure", line="", images=(Image(png=PNG, caption=""),))
    sections = (Section(heading="numbers", lines=("one",)), Section(heading="worst", figures=(figure,)))
    shown = on_terminal(Page(title="refdiff check", passed=False, verdict="1 of 2 gates.", sections=sections))
    assert shown.splitlines() == ["refdiff check", "", "numbers", "one", "", "FAILED 1 of 2 gates."]


def test_a_bar_is_as_wide_as_its_shares():
    drawn = Bar(shares=(("encode", 0.7), ("segment", 0.3))).to_html()
    assert re.findall(r'x="([\d.]+)" width="([\d.]+)"', drawn) == [("0.000", "70.000"), ("70.000", "30.000")]
    assert "encode 70.0%" in drawn


def test_sizes_fit_a_narrow_column():
    assert [size_text(count) for count in (0, 999, 4_000, 999_600, 4_920_000, 3_460_000_000)] == [
        *("0 B", "999 B", "4 kB", "1 MB", "4.92 MB", "3.46 GB"),
    ]
