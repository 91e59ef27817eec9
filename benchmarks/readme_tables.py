"""Write the documents' tables from the records: `.venv/bin/python benchmarks/readme_tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench_tables import bench_table, start_line
from edge_tables import profiles_table, substitutes_table
from engine_tables import decoder_table, encoder_table, fusion_table, memory_table
from growth_tables import growth_table
from precision_tables import (
    builds_table,
    conversions_table,
    cuda_table,
    gpu_table,
    islands_table,
    precision_table,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "gen": "torch, `gen`",
    "gen, between-class": "torch, `gen`, second selector",
    "gen+seg": "torch, `gen+seg`",
    "disc+seg": "torch, `disc+seg`",
    "full": "torch, `full`",
    "runtime": "ONNX Runtime, `full`",
}


def main() -> None:
    """Replace what stands between the markers of each document, where the record was made."""
    for document, marker, record, table in (
        ("README.md", "accuracy", "miniature-accuracy", accuracy_table),
        ("docs/exporting.md", "exports", "full-size-export", exports_table),
        ("docs/exporting.md", "pipeline", "full-size-pipeline", pipeline_table),
        ("docs/exporting.md", "early-exit", "early-exit", early_exit_table),
        ("docs/models.md", "formats", "checkpoint-formats", formats_table),
        ("docs/precision.md", "islands", "attention-islands", islands_table),
        ("docs/precision.md", "precision", "miniature-precision", precision_table),
        ("docs/precision.md", "precision-fresh", "miniature-precision-fresh", precision_table),
        ("docs/precision.md", "cuda", "miniature-precision-cuda", cuda_table),
        ("docs/engines.md", "gpu", "gpu", gpu_table),
        ("docs/engines.md", "fusion", "fusion", fusion_table),
        ("docs/engines.md", "sam-encoder", "sam-encoder", encoder_table),
        ("docs/jetson.md", "memory", "rtx-builds", memory_table),
        ("docs/precision.md", "conversions", "full-size-precision", conversions_table),
        ("docs/precision.md", "builds", "rtx-builds", builds_table),
        ("docs/speed.md", "bench", "bench", bench_table),
        ("docs/speed.md", "start", "bench", start_line),
        ("docs/speed.md", "sam-decoder", "sam-decoder", decoder_table),
        ("docs/speed.md", "growth", "growth", growth_table),
        (
            "docs/decisions/0005-which-substitutes-edge-takes.md",
            "profiles",
            "edge-substitutes",
            profiles_table,
        ),
        (
            "docs/decisions/0005-which-substitutes-edge-takes.md",
            "edge",
            "edge-substitutes",
            substitutes_table,
        ),
    ):
        path = RESULTS / f"{record}.json"
        if path.exists():
            fill(document, marker, table(json.loads(path.read_text(encoding="utf-8"))))


def fill(document: str, name: str, table: str) -> None:
    """Put a table between the markers of its name."""
    path = ROOT / document
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = path.read_text(encoding="utf-8").split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{table}\n{end}{tail}", encoding="utf-8")


def exports_table(record: dict[str, Any]) -> str:
    """One row per export."""
    rows = [
        "| model, px | seconds | peak memory | of it private | written | largest error | taps' correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        outputs = [output for graph in entry["parity"].values() for output in graph.values()]
        taps = min(entry["parity"][graph]["taps"]["correlation"] for graph in ("unet", "unet_taps"))
        cells = [
            f"{entry['seconds']:.0f}",
            *(_gigabytes(entry[key]) for key in ("peak_rss_bytes", "peak_private_bytes", "written_bytes")),
            f"{max(output['error'] for output in outputs):.1e}",
            f"{taps:.9f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def pipeline_table(record: dict[str, Any]) -> str:
    """One row per picture."""
    rows = [
        "| bundle, px, picture | candidates torch / runtime | smallest IoU, in order "
        "| largest score difference | same choice | seconds torch / runtime |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        found, chosen = entry["candidates"], entry["chosen"]
        cells = [
            f"{found['reference']} / {found['runtime']}",
            f"{entry['smallest_iou_in_order']:.6f}",
            f"{entry['largest_score_difference']:.1e}",
            "yes" if chosen["reference"] == chosen["runtime"] else "no",
            f"{entry['reference_seconds']:.0f} / {entry['runtime_seconds']:.0f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def early_exit_table(record: dict[str, Any]) -> str:
    """One row per bundle."""
    rows = ["| bundle, px | | `unet` | `unet_taps` | ratio |", "|---|---|---|---|---|"]
    for name, entry in record.items():
        counts, seconds = entry["multiply_adds_per_picture"], entry["median_seconds"]
        billions = [f"{counts[graph] / 1e9:.1f} G" for graph in ("unet", "unet_taps")]
        times = [f"{seconds[graph]:.2f} s" for graph in ("unet", "unet_taps")]
        rows.append(
            f"| `{name}` | multiply-adds per picture | {' | '.join(billions)} "
            f"| {entry['multiply_adds_ratio']:.3f} |"
        )
        rows.append(f"| | median time, batch 2 | {' | '.join(times)} | {entry['time_ratio']:.3f} |")
    return "\n".join(rows)


def formats_table(record: dict[str, Any]) -> str:
    """One row per format."""
    rows = [
        "| written as | size | tensors equal to the bit | forward equal to the bit | largest difference "
        "| open, s | load, s | private memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        counted = f"{entry['equal_tensors']} of {entry['tensors']}" if "tensors" in entry else "renamed"
        cells = [
            _gigabytes(entry["written_bytes"]),
            counted,
            "yes" if entry["forward_equal"] else "no",
            f"{entry['largest_forward_difference']:.1e}" if entry["largest_forward_difference"] else "0",
            f"{entry['seconds_to_describe']:.1f}",
            f"{entry['seconds_to_load']:.1f}",
            _gigabytes(entry["peak_private_growth_bytes"]),
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def accuracy_table(record: dict[str, Any]) -> str:
    """One row per back-end and mode, columns by profile."""
    rows = ["| computed by | `official` mIoU | oIoU | `edge` mIoU | oIoU |", "|---|---|---|---|---|"]
    by_variant = record["profiles"]
    for key, name in NAMES.items():
        cells = [
            f"{by_variant[variant]['modes'][key][metric]:.3f}"
            for variant in ("official", "edge")
            for metric in ("miou", "oiou")
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    oracle = [
        f"{by_variant[variant]['modes']['full']['oracle_miou']:.3f}" for variant in ("official", "edge")
    ]
    rows.append(f"| best candidate (oracle) | {oracle[0]} | | {oracle[1]} | |")
    agreements = [by_variant[variant]["agreement"] for variant in ("official", "edge")]
    agreed = [f"{each['argmax_agreement']:.3f}" for each in agreements]
    masks = [f"{each['mask_iou']:.4f}" for each in agreements]
    return "\n".join(rows) + (
        f"\n\n{record['scenes']} scenes from seed {record['seed']}. Runtime against reference: the same"
        f" candidate is chosen on {agreed[0]} (`official`) and {agreed[1]} (`edge`) of them; the two masks'"
        f" mean IoU is {masks[0]} and {masks[1]}."
    )


if __name__ == "__main__":
    main()
