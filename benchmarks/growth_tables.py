"""The tables of growth, from results/growth.json."""

from __future__ import annotations

from typing import Any


def growth_table(record: dict[str, Any]) -> str:
    """One row per curve and entry, its points in one cell each; then the lines fitted over phrases."""
    rows = [
        "| bundle, px, series | curve | processor seconds (wall clock) | peak memory, MB (of it private) |",
        "|---|---|---|---|",
    ]
    for name, entry in record.items():
        for curve, measured in entry["curves"].items():
            times = [
                f"{row['label']}: {row['cpu_seconds']['median']:.2f} ({row['seconds']['median']:.2f})"
                for row in measured["points"]
            ]
            peaks = [
                f"{row['label']}: {row['peak_rss_bytes'] / 1e6:.0f} ({row['peak_private_bytes'] / 1e6:.0f})"
                for row in measured["points"]
            ]
            cells = ["<br>".join(times), "<br>".join(peaks)]
            rows.append(f"| `{name}` | {curve} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n\n" + fits_table(record)


def fits_table(record: dict[str, Any]) -> str:
    """The line of each curve over phrases, in processor time; the shares by the wall clock too."""
    rows = [
        "| bundle, px, series | curve | picture's cost, s | each phrase, s "
        "| of the first phrase's whole cost (wall clock) | largest distance from the line |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for curve, measured in entry["curves"].items():
            if "fit" in measured:
                fit, wall = (measured["fit"][clock] for clock in ("cpu_seconds", "seconds"))
                cells = [
                    f"{fit['intercept']:.3f}",
                    f"{fit['slope']:.4f}",
                    f"{fit['slope_over_first']:.3f} ({wall['slope_over_first']:.3f})",
                    f"{fit['largest_relative_residual']:.1%}",
                ]
                rows.append(f"| `{name}` | {curve} | {' | '.join(cells)} |")
    return "\n".join(rows)
