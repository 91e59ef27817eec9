"""Tables of running programs: the pipeline, many phrases, a camera, the server."""

from __future__ import annotations

from typing import Any

_SHOWN = 5
"""Number of graphs that a row names."""


def bench_table(record: dict[str, Any]) -> str:
    """Return one row per bundle and variant."""
    rows = [
        "| bundle, px | computed by | seconds | speed-up over the original | outside the graphs "
        "| slowest graphs |",
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
            f"{_seconds(many['seconds'] / many['phrases'])} per phrase",
            f"{many['reference_over_official_per_phrase']:.1f} per phrase",
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
    """Return the start-up cost of the miniature."""
    start = record["mini 128"]["start"]
    return (
        f"`import refdiff` takes {start['import_s']:.2f} s, loading the miniature {start['load_s']:.2f} s; a"
        " process that answers one phrase on an image of 1280 × 720 px with `edge` takes"
        f" {start['peak_resident_mb_720p_edge']:.0f} MB of memory at most, including the bundle's files with"
        f" {start['weights_mb']:.0f} MB."
    )


def _graphs(answers: list[dict[str, Any]]) -> str:
    """Return the slowest graphs with their share of the time."""
    total = sum(answer["seconds"] for answer in answers)
    graphs: dict[str, float] = {}
    for answer in answers:
        for graph, seconds in answer["seconds_by_graph"].items():
            graphs[graph] = graphs.get(graph, 0.0) + seconds
    slowest = sorted(graphs.items(), key=lambda item: -item[1])[:_SHOWN]
    return ", ".join(f"{graph} {100 * seconds / total:.0f} %" for graph, seconds in slowest)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def growth_table(record: dict[str, Any]) -> str:
    """Return one row per curve and entry, its points in one cell each; then the lines fitted over phrases."""
    rows = [
        "| bundle, px, series | curve | processor seconds (wall clock) | peak memory, MB (private part) |",
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
    """Return the line fitted to each curve over phrases, in processor time; shares by wall clock too."""
    rows = [
        "| bundle, px, series | curve | image, s | each phrase, s "
        "| share of the first phrase's total (wall clock) | largest distance from the line |",
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


def camera_rate_table(record: dict[str, Any]) -> str:
    """Return one row per run whose times were recorded; then the memory of the long run."""
    rows = [
        "| run | frames/s in, out | key frames/s | capture to consumer, p50, p99, ms | mask age, p50, ms |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for name, entry in record.items():
        if "fps" not in entry:
            sizes = ", ".join(f"{each:.0f}" for each in entry["memory"]["every_tenth_of_the_time_mb"])
            notes.append(
                f"Resident memory, {name}: {sizes} MB at each tenth of the time, at most"
                f" {entry['memory']['most_mb']:.0f} MB; a line through all values grows by"
                f" {entry['memory']['slope_mb_per_minute']:.1f} MB a minute."
            )
            continue
        fps, delay = entry["fps"], entry["capture_to_consumer_ms"]
        cells = [
            f"{fps['in']:.1f}, {fps['out']:.1f}",
            f"{fps['key']:.1f}",
            f"{delay['p50']:.0f}, {delay['p99']:.0f}",
            f"{entry['delays_ms']['mask_age']['p50']:.0f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *notes])


def camera_tracking_table(record: dict[str, Any]) -> str:
    """Return one row per delay and method, of moderate motion."""
    entry = record["moderate motion"]
    lines = [
        f"Moving rendered scenes of 640x480 px, objects of 2 to 4 px a frame, {entry['clips']} clips of "
        f"{entry['frames_per_clip']} frames that nothing was tuned on; key frames of the miniature, answered "
        "late. IoU of all frames with a visible target once a key frame since the last cut has been "
        "answered, 0 where there is no mask:",
        "",
        "| key frames answered after | masks | IoU | of the key frames' IoU | IoU where there is a mask "
        "| frames on another object | of these seen or tracked | frames without a mask |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for delay, methods in entry["delays_s"].items():
        for name, row in methods.items():
            counts = row["counts"]
            frames = counts["frames"]
            follows = name.startswith("points")
            masked = counts.get("state lost", 0) + counts.get("state searching", 0)
            trusted = counts.get("wrong target, seen or tracked", 0)
            cells = [
                f"{delay} s",
                name,
                f"{row['iou']:.3f}",
                f"{row['of_key_frames']:.0%}",
                f"{row['iou_with_mask']:.3f}",
                f"{counts.get('wrong target', 0)} of {frames}",
                str(trusted) if follows else "",
                f"{masked} of {frames}" if follows else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def serve_load_table(record: dict[str, Any]) -> str:
    """Return one row per number of clients."""
    rows = [
        "| bundle | clients | answers/s | p50, p99, ms | refused with 429 "
        "| resident memory, MB, start and end |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for many, load in entry["clients"].items():
            cells = [
                f"{load['per_second']:.1f}",
                f"{load['p50_ms']:.0f}, {load['p99_ms']:.0f}",
                str(load["refused_429"]),
                f"{load['resident_mb'][0]:.0f}, {load['resident_mb'][-1]:.0f}",
            ]
            rows.append(f"| `{name}` | {many} | {' | '.join(cells)} |")
        rows.append("")
        rows.append(
            f"`{name}`: engines with one thread, every image new, a cache of {entry['cache_mb']} MB,"
            f" {entry['seconds']:g} s for each row. The"
            f" pipeline alone takes {entry['pipeline_ms']:.0f} ms for such a question; one client waits"
            f" {100 * entry['overhead_of_one_client']:.0f} % longer."
        )
    return "\n".join(rows)


def serve_live_table(record: dict[str, Any]) -> str:
    """Return one row for the client alone, the session alone, and both together."""
    rows = [
        "| bundle | running | client: answers/s | p50, p99, ms | session: results/s | key frames/s "
        "| p50, p99, ms | IoU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for part in ("client", "session", "both"):
            client, session = entry[part].get("client"), entry[part].get("session")
            cells = ["", ""] if client is None else [f"{client['answers_per_s']:.1f}", _p50_p99(client)]
            if session is None:
                cells += [""] * 4
            else:
                iou = session["mean_iou"]
                cells += [f"{session['results_per_s']:.1f}", f"{session['key_frames_per_s']:.1f}"]
                cells += [_p50_p99(session), "" if iou is None else f"{iou:.3f}"]
            rows.append(f"| `{name}` | {part} | {' | '.join(cells)} |")
        rows += ["", f"`{name}`: engines with one thread, {entry['seconds']:g} s for each row."]
    return "\n".join(rows)


def _p50_p99(times: dict[str, Any]) -> str:
    return f"{times['p50_ms']:.0f}, {times['p99_ms']:.0f}"
