"""The tables of docs/precision.md."""

from __future__ import annotations

from typing import Any

SHOWN = ("fp32", "fp16", "bf16", "int8", "fp8")


def islands_table(record: dict[str, Any]) -> str:
    """One row per island tried."""
    rows = ["| in fp32 | activation memory the builder plans |", "|---|---|"]
    rows += [f"| {name} | {entry['activation_bytes'] / 1e6:.0f} MB |" for name, entry in record.items()]
    return "\n".join(rows)


def precision_table(record: dict[str, Any]) -> str:
    """One row per precision and profile."""
    rows = [
        "| bundle | size | profile | executed by | mIoU | points lost "
        "| same choice | mask IoU | heat correlation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = [name for name in SHOWN if name in record] + sorted(set(record) - set(SHOWN))
    full = record["fp32"]
    for name in names:
        entry = record[name]
        size = f"{entry['size_bytes'] / 1e6:.1f} MB, {entry['size_bytes'] / full['size_bytes']:.3f}x"
        for variant, backends in entry["profiles"].items():
            for backend, measured in backends.items():
                miou = measured["metrics"]["miou"]
                lost = 100 * (full["profiles"][variant]["ort-cpu"]["metrics"]["miou"] - miou)
                agreed = measured["agreement_with_fp32"]
                cells = [
                    *(f"`{name}`", size, f"`{variant}`", f"`{backend}`", f"{miou:.4f}", f"{lost:+.2f}"),
                    f"{agreed['argmax_agreement']:.3f}",
                    f"{agreed['mask_iou']:.4f}",
                    f"{agreed['heat_correlation']:.6f}",
                ]
                rows.append(f"| {' | '.join(cells)} |")
    counts = sorted({(entry["scenes"], entry["seed"]) for entry in record.values()}, reverse=True)
    lines = []
    for count, seed in counts:
        some = [n for n in names if (record[n]["scenes"], record[n]["seed"]) == (count, seed)]
        lines.append(f"{', '.join(f'`{n}`' for n in some)}: {count} scenes from seed {seed}")
    return "\n".join(rows) + f"\n\n{'; '.join(lines)}."


def cuda_table(record: dict[str, Any]) -> str:
    """One row per bundle and profile."""
    rows = [
        "| bundle | profile | mIoU | mask IoU | masks with an IoU of 0.99 or more | heat correlation |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for variant, backends in entry["profiles"].items():
            measured = backends["ort-cuda"]
            agreed = measured["agreement_with_fp32"]
            cells = [
                *(f"{name}", f"`{variant}`", f"{measured['metrics']['miou']:.4f}"),
                f"{agreed['mask_iou']:.4f}",
                f"{agreed['answers_with_iou_0.99']:.3f}",
                f"{agreed['heat_correlation']:.6f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def gpu_table(record: dict[str, Any]) -> str:
    """One row per graph of each run in which torch and ONNX Runtime took turns."""
    others = ("torch-eager", "torch-compile")
    rows = [
        "| bundle, graph | ort-cuda | torch-eager | torch-compile | eager / ort-cuda | compile / ort-cuda |",
        "|---|---|---|---|---|---|",
    ]
    for run, entry in record.items():
        for graph, of in entry["graphs"].items():
            measured = of["contenders"]
            if "ort-cuda" not in measured or "torch-eager" not in measured:
                continue
            ours = measured["ort-cuda"]["device_ms"]["p50"]
            cells = [_percentiles(measured.get(name)) for name in ("ort-cuda", *others)]
            cells += [
                f"{measured[name]['device_ms']['p50'] / ours:.2f}x" if name in measured else ""
                for name in others
            ]
            rows.append(f"| {run.split(',')[0]} `{graph}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _percentiles(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "not ready in time"
    times = measured["device_ms"]
    figures = " / ".join(f"{times[key]:.2f}" for key in ("p50", "p90", "p99"))
    return f"{figures}; {measured['error']:.0e}"


def conversions_table(record: dict[str, Any]) -> str:
    """One row per graph and tool."""
    rows = [
        "| graph | tool | converting, s | with start and ranges, s "
        "| private memory | peak memory | written |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for tool, run in entry["conversions"].items():
            if "failed" in run:
                rows.append(f"| `{name}` | {tool} | failed: {run['failed']} | | | | |")
                continue
            sizes = (f"{run[key] / 1e9:.2f} GB" for key in _SIZES)
            times = f"{run['conversion_seconds']:.1f} | {run['seconds']:.1f}"
            rows.append(f"| `{name}` | {tool} | {times} | {' | '.join(sizes)} |")
    return "\n".join(rows)


_SIZES = ("peak_private_bytes", "peak_rss_bytes", "written_bytes")


def builds_table(record: dict[str, Any]) -> str:
    """One row per bundle."""
    rows = ["| bundle | graphs built | plans | largest activations | seconds |", "|---|---|---|---|---|"]
    for name, entry in record.items():
        graphs = entry["graphs"].values()
        built = [graph for graph in graphs if graph["built"]]
        cells = [
            f"{len(built)} of {len(entry['graphs'])}",
            f"{sum(graph['plan_bytes'] for graph in built) / 1e6:.0f} MB",
            f"{max((graph['activation_bytes'] or 0 for graph in built), default=0) / 1e6:.0f} MB",
            f"{sum(graph['seconds'] for graph in built):.0f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)
