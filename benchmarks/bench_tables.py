"""Tables of docs/speed.md: the pipeline beside the original arithmetic, and where its time goes."""

from __future__ import annotations

from typing import Any

_SHOWN = 5
"""Graphs of a profile that are named."""


def bench_table(record: dict[str, Any]) -> str:
    """One row per bundle and profile."""
    rows = [
        "| bundle, px | computed by | seconds | faster than the original by | outside the graphs "
        "| most of it in |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        rows.append(f"| `{name}` | torch, as released | {_seconds(entry['seconds']['reference'])} | | | |")
        for variant, ratio in entry["reference_over"].items():
            cells = [
                _seconds(entry["seconds"][variant]),
                f"{ratio:.2f}",
                f"{100 * entry['share_outside_graphs'][variant]:.1f} %",
                _graphs([turn[variant] for turn in entry["turns"]]),
            ]
            rows.append(f"| `{name}` | runtime, `{variant}` | {' | '.join(cells)} |")
        many = entry["many"]
        cells = [
            f"{_seconds(many['seconds'] / many['phrases'])} a phrase",
            f"{many['reference_over_official_per_phrase']:.1f} a phrase",
            f"{100 * (1 - many['graph_seconds'] / many['seconds']):.1f} %",
            _graphs([many]),
        ]
        rows.append(f"| `{name}` | runtime, `official`, {many['phrases']} phrases | {' | '.join(cells)} |")
    threads = {entry["threads"] for entry in record.values()}
    return "\n".join(rows) + (
        f"\n\n{' or '.join(map(str, sorted(threads)))} threads, all contenders in turns in one run; ratios"
        " are taken within a turn, and the medians of all turns are shown."
    )


def start_line(record: dict[str, Any]) -> str:
    """What the miniature costs before its first answer."""
    start = record["mini 128"]["start"]
    return (
        f"`import refdiff` takes {start['import_s']:.2f} s, loading the miniature {start['load_s']:.2f} s; a"
        " process that answers one phrase about a picture of 1280 × 720 px with `edge` holds"
        f" {start['peak_resident_mb_720p_edge']:.0f} MB at most, of which the bundle's files are"
        f" {start['weights_mb']:.0f} MB."
    )


def _graphs(answers: list[dict[str, Any]]) -> str:
    """The slowest graphs with their share of the time."""
    total = sum(answer["seconds"] for answer in answers)
    graphs: dict[str, float] = {}
    for answer in answers:
        for graph, seconds in answer["seconds_by_graph"].items():
            graphs[graph] = graphs.get(graph, 0.0) + seconds
    slowest = sorted(graphs.items(), key=lambda item: -item[1])[:_SHOWN]
    return ", ".join(f"{graph} {100 * seconds / total:.0f} %" for graph, seconds in slowest)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"
