import dataclasses
import json

import numpy as np
import pytest

from refdiff.camera.frame import SourceCounts
from refdiff.camera.summary import (
    KeyCounts,
    Quantiles,
    Rate,
    TrackCounts,
    summarize,
    summary_section,
)
from tests.support.frames import made_result


def test_quantiles_are_those_of_the_times_to_two_percent():
    times = np.random.default_rng(0).lognormal(-3, 1, 5000)
    quantiles = Quantiles()
    for each in times:
        quantiles.add(float(each))
    for share in (0.5, 0.9, 0.99):
        assert quantiles.at(share) == pytest.approx(np.quantile(times, share), rel=0.03)
    assert quantiles.at(1.0) == pytest.approx(times.max(), rel=0.02)
    assert quantiles.to_json()["n"] == 5000


def test_quantiles_of_nothing_and_of_extremes():
    assert Quantiles().to_json() == {"n": 0, "p50": None, "p90": None, "p99": None, "max": 0.0}
    quantiles = Quantiles()
    quantiles.add(0.0)
    quantiles.add(1e9)
    assert quantiles.at(0.1) == pytest.approx(1e-4)


def test_a_rate_is_that_of_all_and_of_the_last_ones():
    rate = Rate()
    assert (rate.recent, rate.overall) == (0.0, 0.0)
    for at in range(100):
        rate.note(at / 10, at)
    for at in range(100):
        rate.note(10 + at / 50, 100 + at)
    assert rate.recent == pytest.approx(50)
    assert 10 < rate.overall < 50


def test_a_summary_accounts_for_every_frame_and_reads_as_a_table():
    counts = TrackCounts(dropped={"paused": 3})
    for number in range(10):
        counts.note(made_result(number).frame, made_result(number).targets, 0.02, number / 30)
    source = SourceCounts(captured=20, delivered=15, dropped={"newest": 5}, reconnects=1)
    summary = summarize(
        counts,
        KeyCounts(answered=4, failed=1),
        source,
        seconds=2.0,
        taken=7,
        unread=2,
        backend=("ort-cpu", "asked for"),
    )
    assert summary.dropped == {"newest": 5, "paused": 3, "consumer": 2, "closed": 1}
    assert summary.results == 7
    assert summary.fps["key"] == 2.0
    assert summary.fps["in"] == pytest.approx(30)
    assert summary.states == {"tracked": 10}
    document = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert document["delays_ms"]["mask_age"]["p50"] == pytest.approx(250, rel=0.02)
    files = {"results.jsonl": {"written": 8, "dropped": 2, "error": None}}
    (line,) = summary_section(summary).lines
    delays, facts = summary_section(
        dataclasses.replace(summary, files=files, throttling=("cpu0 slow",))
    ).tables
    assert line == "made   2.0 s on ort-cpu"
    assert [row[0].text for row in delays.cells] == ["capture to key", "capture to result", "mask age"]
    named = {row[0].text: row[1].text for row in facts.cells}
    assert named["dropped"] == "5 newest, 3 paused, 2 consumer, 1 closed"
    assert named["results.jsonl"] == "8 frames, 2 left out"
    assert named["key lane"] == "1 failed"
