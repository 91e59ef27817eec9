"""The three verdicts of `check`: in table, page, document and exit code; and every term explained."""

import json
import re
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.reports.page import Section
from refdiff.verification.tables import check_page
from tests.support.checks import report_on, said_by

DOCS = Path(__file__).parents[2] / "docs"

ONE_OF_EIGHT = [1.0] * 7 + [0.0]
UNDECIDED = report_on({"argmax_agreement": ONE_OF_EIGHT, "rank_agreement": [1.0] * 8})
BROKEN = report_on({"mask_iou": [0.0] * 8, "argmax_agreement": ONE_OF_EIGHT})


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_too_few_samples_end_with_zero_and_a_note(monkeypatch, capsys):
    code, out, err = said_by(UNDECIDED, monkeypatch, capsys)
    assert code == 0
    assert (
        "note: too few samples to judge 1 of 8 gates: edge argmax_agreement 0.875, expected at least" in err
    )
    assert re.search(r"if more samples are like these, (\d+) decide \(--count \1\)", err)
    assert squeezed(out).endswith("undecided 1 of 8 gates have too few samples to judge.")
    assert "too few" in out


def test_too_few_samples_end_with_one_where_a_verdict_is_required(monkeypatch, capsys):
    code, _, err = said_by(UNDECIDED, monkeypatch, capsys, "--require-verdict")
    assert code == 1
    assert "error: too few samples to judge 1 of 8 gates: " in err
    assert said_by(report_on({"mask_iou": [1.0] * 8}), monkeypatch, capsys, "--require-verdict")[0] == 0


def test_a_failed_gate_ends_with_one_also_where_others_are_undecided(monkeypatch, capsys):
    code, out, err = said_by(BROKEN, monkeypatch, capsys)
    assert code == 1
    assert "error: 1 of 8 gates failed: edge mask_iou 0, expected at least 0.95" in err
    assert squeezed(out).endswith("FAILED 1 of 8 gates. 1 of 8 gates have too few samples to judge.")


def test_a_graph_outside_its_tolerance_fails_however_few_the_samples_are(monkeypatch, capsys):
    report = report_on({"argmax_agreement": ONE_OF_EIGHT}, error=0.5)
    assert report.outcome == "failed"
    assert said_by(report, monkeypatch, capsys)[0] == 1


def test_the_document_has_the_verdict_the_interval_and_the_cautions(monkeypatch, capsys):
    _, out, _ = said_by(UNDECIDED, monkeypatch, capsys, "--json")
    document = json.loads(out)
    assert (document["passed"], document["verdict"]) == (False, "undecided")
    assert document["cautions"] == list(UNDECIDED.cautions)
    shown = {each["name"]: each for each in document["reference"]["edge"]}
    assert shown["argmax_agreement"]["verdict"] == "undecided"
    assert shown["argmax_agreement"]["samples_needed"] > 8
    assert shown["rank_agreement"]["verdict"] == "passed"
    assert document["golden"][0]["verdict"] == "passed"
    assert "interval_95" not in document["golden"][0]


def test_the_page_says_that_it_could_not_judge():
    page = check_page(UNDECIDED).to_html()
    assert '<p class="verdict warn"><strong>undecided</strong>1 of 8 gates' in page
    assert "<h2>Too few samples to judge</h2>" in page
    assert '<td class="warn">too few</td>' in page
    assert "Failed gates" not in page
    assert "Caution: random weights: the mask means nothing." in page


def terms(section: Section) -> set[str]:
    """Every named column, and every part of the agreement."""
    named = {column.name for table in section.tables for column in table.columns if column.name}
    parts = {table.cells[row][0].text for table in section.tables for row in range(len(table.rows))}
    return named | (parts if section.heading.startswith(("Torch", "Golden")) else set())


@pytest.mark.parametrize("where", ["help", "docs"])
def test_every_column_and_term_is_explained(where: str, monkeypatch, capsys):
    parts = ("mask_iou", "argmax_agreement", "candidate_recall", "rank_agreement", "heat_correlation")
    page = check_page(report_on(dict.fromkeys(parts, ONE_OF_EIGHT)))
    named = set().union(*(terms(section) for section in page.sections))
    named |= {"from the one before", "on feeds", "too few", "FAILED", "rung", "divergence"}
    assert {"95 % interval", "to decide", "noise floor", "mask IoU", "rank agreement"} <= named
    if where == "help":
        monkeypatch.setenv("COLUMNS", "300")
        main(["check", "--help"])
        text = capsys.readouterr().out
    else:
        text = (DOCS / "output.md").read_text(encoding="utf-8").partition("## check")[2].partition("\n## ")[0]
    missing = {term for term in named if term.lower() not in squeezed(text).lower()}
    assert not missing
