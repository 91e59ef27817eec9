"""An exporter that copies: a bundle of modules that were exported before, in the time of its checks."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from refdiff.contracts.graphs import GraphSpec
from refdiff.export.bundle_export import GraphExporter
from refdiff.export.onnx_export import data_name, export_graph


def copying(bundle: Path, *, exported: Collection[str] = ()) -> GraphExporter:
    """Copy the graphs of `bundle`, and export those named; `export_bundle` compares all with torch."""

    def write(module: Any, graph: GraphSpec, folder: Path) -> Path:
        if graph.name in exported:
            return export_graph(module, graph, folder)
        for name in (f"{graph.name}.onnx", data_name(graph.name)):
            if (bundle / name).exists():
                shutil.copyfile(bundle / name, folder / name)
        return folder / f"{graph.name}.onnx"

    return write
