"""Write the tables of the documents from the records in results/: `python -m benchmarks.tables`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import RESULTS
from benchmarks.tables import accuracy, exports, precision, runs

ROOT = Path(__file__).parents[2]


class Entry(NamedTuple):
    """A table of a document."""

    document: str
    marker: str
    record: str
    """Name of the file in results/, without its suffix."""
    table: Callable[[dict[str, Any]], str]
    """Takes the record, returns Markdown."""


EDGE = "docs/decisions/0005-which-substitutes-edge-takes.md"
MAPS = "docs/decisions/0007-better-maps.md"
TABLES = (
    Entry("README.md", "accuracy", "miniature-accuracy", accuracy.accuracy_table),
    Entry("src/refdiff/miniature/MODEL_CARD.md", "mini-edge", "mini-edge", accuracy.mini_edge_table),
    Entry("docs/confidence.md", "confidence", "confidence", accuracy.confidence_table),
    Entry(EDGE, "profiles", "edge-substitutes", accuracy.profiles_table),
    Entry(EDGE, "edge", "edge-substitutes", accuracy.substitutes_table),
    Entry(MAPS, "maps", "maps", accuracy.maps_table),
    Entry(MAPS, "negatives", "negative-points", accuracy.negatives_table),
    Entry("docs/camera.md", "camera-tracking", "camera-tracking", runs.camera_tracking_table),
    Entry("docs/camera.md", "camera-rate", "camera-rate", runs.camera_rate_table),
    Entry("docs/serving.md", "serve-load", "serve-load", runs.serve_load_table),
    Entry("docs/serving.md", "serve-live", "serve-live", runs.serve_live_table),
    Entry("docs/speed.md", "bench", "bench", runs.bench_table),
    Entry("docs/speed.md", "start", "bench", runs.start_line),
    Entry("docs/speed.md", "growth", "growth", runs.growth_table),
    Entry("docs/exporting.md", "exports", "full-size-export", exports.exports_table),
    Entry("docs/exporting.md", "pipeline", "full-size-pipeline", exports.pipeline_table),
    Entry("docs/exporting.md", "early-exit", "early-exit", exports.early_exit_table),
    Entry("docs/models.md", "formats", "checkpoint-formats", exports.formats_table),
    Entry("docs/speed.md", "sam-decoder", "sam-decoder", exports.decoder_table),
    Entry("docs/decisions/0008-small-models.md", "small-models", "small-models", exports.small_models_table),
    Entry("docs/precision.md", "fp32-regions", "attention-regions", precision.regions_table),
    Entry("docs/precision.md", "precision", "miniature-precision", precision.precision_table),
    Entry("docs/precision.md", "precision-fresh", "miniature-precision-fresh", precision.precision_table),
    Entry("docs/precision.md", "precision-mini-edge", "mini-edge-precision", precision.precision_table),
    Entry("docs/precision.md", "cuda", "miniature-precision-cuda", precision.cuda_table),
    Entry("docs/precision.md", "conversions", "full-size-precision", precision.conversions_table),
    Entry("docs/precision.md", "builds", "rtx-builds", precision.builds_table),
    Entry("docs/engines.md", "gpu", "gpu", precision.gpu_table),
    Entry("docs/engines.md", "fusion", "fusion", precision.fusion_table),
    Entry("docs/engines.md", "sam-encoder", "sam-encoder", precision.encoder_table),
    Entry("docs/jetson.md", "memory", "rtx-builds", precision.memory_table),
)


def main() -> None:
    """Replace the text between the markers of each document whose record exists."""
    for entry in TABLES:
        path = RESULTS / f"{entry.record}.json"
        if path.exists():
            fill(entry, entry.table(json.loads(path.read_text(encoding="utf-8"))))


def fill(entry: Entry, table: str) -> None:
    """Put a table between the markers of its name."""
    path = ROOT / entry.document
    begin, end = f"<!-- {entry.marker}:begin -->", f"<!-- {entry.marker}:end -->"
    head, rest = path.read_text(encoding="utf-8").split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{table}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
