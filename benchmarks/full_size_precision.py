"""Measure the conversion of full-size graphs to fewer bits, and ONNX Runtime's own tools in the same run.

    .venv/bin/python -m benchmarks.full_size_precision BUNDLE unet --half --rounds 3
    .venv/bin/python -m benchmarks.full_size_precision BUNDLE unet --int8

BUNDLE is an fp32 bundle (random weights will do). Every conversion is a child process of its own; ours and
theirs take turns. Adds an entry per graph to results/full-size-precision.json. Both read the graph from the
disk and write it there with its weights next to it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import refdiff  # noqa: F401 - disables the telemetry of what is imported later
from benchmarks.records import RESULTS, add_entry
from benchmarks.watched import run_watched

RECORD = RESULTS / "full-size-precision.json"

CONVERSIONS = {"half": ("ours-fp16", "onnxruntime-fp16"), "int8": ("ours-int8", "onnxruntime-int8")}


def main() -> None:
    """Run the conversions in turns and record medians of time and peaks of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("graph")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument(
        "--without", default="", help="a conversion to leave out, where it needs too much memory"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, help="a folder for the converted graphs, one below it for each tool"
    )
    parser.add_argument("--child", help="internal: the conversion to run")
    parser.add_argument("--target", type=Path, help="internal: the file to write")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(CHILDREN[given.child](given.bundle, given.graph, given.target)))  # noqa: T201 - for the parent
        return
    kinds = [kind for kind in ("half", "int8") if getattr(given, kind)]
    names = [name for kind in kinds for name in CONVERSIONS[kind] if name != given.without]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            runs[name].append(measure(name, given.bundle, given.graph, given.keep))
            print(name, runs[name][-1], flush=True)  # noqa: T201 - what a benchmark is for
    bundle = json.loads((given.bundle / "manifest.json").read_text())
    for kind in kinds:
        summary = {name: summarised(runs[name]) for name in CONVERSIONS[kind] if runs.get(name)}
        entry = f"{bundle['spec']['name']} {given.graph} {kind}"
        add_entry(RECORD, entry, {"rounds": given.rounds, "conversions": summary})


def measure(name: str, bundle: Path, graph: str, keep: Path | None) -> dict[str, Any]:
    """Run one conversion as a child process, and record also that it failed or was killed."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        target = Path(folder) / f"{graph}.onnx"
        command = [
            sys.executable,
            "-m",
            "benchmarks.full_size_precision",
            str(bundle),
            graph,
            "--child",
            name,
            "--target",
            str(target),
        ]
        try:
            watched = run_watched(command)
        except subprocess.CalledProcessError as error:
            return {"failed": f"exit code {error.returncode}"}
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
        if keep is not None:
            (keep / name).mkdir(parents=True, exist_ok=True)
            for path in Path(folder).iterdir():
                shutil.move(path, keep / name / path.name)
        return {
            "seconds": round(watched.seconds, 1),
            **json.loads(watched.stdout.splitlines()[-1]),
            "peak_rss_bytes": watched.peak_rss_bytes,
            "peak_private_bytes": watched.peak_private_bytes,
            "written_bytes": written,
        }


def summarised(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of the times, maximum of the rest."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return runs[0]
    times = [key for key in good[0] if key.endswith("seconds")]
    medians = {key: round(statistics.median(run[key] for run in good), 2) for key in times}
    keys = ("peak_rss_bytes", "peak_private_bytes", "written_bytes")
    return {**medians, **{key: max(run[key] for run in good) for key in keys}, "runs": len(good)}


def ours_half(bundle: Path, graph: str, target: Path) -> dict[str, float]:
    """Convert with the pass of this toolkit and its default fp32 regions."""
    import onnx_ir as ir

    from refdiff.contracts.recipe import GraphRecipe
    from refdiff.passes.convert import convert_graph
    from refdiff.passes.keep_fp32 import default_fp32_nodes, default_half_weights

    source, started = bundle / f"{graph}.onnx", time.perf_counter()
    whole = ir.load(source).graph
    half_weights = default_half_weights(graph, whole)
    recipe = GraphRecipe(half="fp16", fp32=default_fp32_nodes(whole), half_weights=half_weights)
    convert_graph(source, target, recipe)
    return {"conversion_seconds": time.perf_counter() - started}


def theirs_half(bundle: Path, graph: str, target: Path) -> dict[str, float]:
    """Onnxruntime's converter."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    started = time.perf_counter()
    model = onnx.load(bundle / f"{graph}.onnx")
    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    onnx.save(half, target, save_as_external_data=True, location=f"{target.name}.data")
    return {"conversion_seconds": time.perf_counter() - started}


def ours_int8(bundle: Path, graph: str, target: Path) -> dict[str, float]:
    """Ranges from the bundle's golden feed, then the passes."""
    import onnx_ir as ir

    from refdiff.calibration.ranges import collect_ranges
    from refdiff.contracts.recipe import GraphRecipe, Quantized, match_rules
    from refdiff.passes.convert import convert_graph
    from refdiff.passes.keep_fp32 import default_fp32_nodes
    from refdiff.passes.quantizable import (
        choose_eight_bit_nodes,
        data_inputs,
        default_excluded,
        default_weights_alone,
    )

    source, started = bundle / f"{graph}.onnx", time.perf_counter()
    model = ir.load(source).graph
    fp32, excluded = default_fp32_nodes(model), default_excluded(graph, model)
    nodes = choose_eight_bit_nodes(model, fp32_rules=fp32, excluded=excluded)
    alone = default_weights_alone(graph, nodes)
    fed = [node for node in nodes if node not in match_rules(alone, nodes, where=graph)]
    ranges = collect_ranges(source, [feeds_of(bundle, graph)], data_inputs(model, fed), method="minmax")
    measured = time.perf_counter()
    quantized = Quantized(type="int8", nodes=nodes, ranges=ranges, method="minmax", weights_alone=alone)
    convert_graph(source, target, GraphRecipe(half="fp16", fp32=fp32, excluded=excluded, quantized=quantized))
    return {
        "ranges_seconds": measured - started,
        "conversion_seconds": time.perf_counter() - measured,
    }


def theirs_int8(bundle: Path, graph: str, target: Path) -> dict[str, float]:
    """Convert with the static quantizer of onnxruntime on the same feed: QDQ, per channel, symmetric."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class OneFeed(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter([feeds_of(bundle, graph)])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    started = time.perf_counter()
    quantize_static(
        bundle / f"{graph}.onnx",
        target,
        OneFeed(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv", "ConvTranspose"],
        use_external_data_format=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return {"conversion_seconds": time.perf_counter() - started}


def feeds_of(bundle: Path, graph: str) -> Any:
    """Return the golden feed of a graph."""
    from refdiff.contracts.bundle import open_bundle

    return dict(open_bundle(bundle, verify="size").golden()[graph][0])


CHILDREN = {
    "ours-fp16": ours_half,
    "onnxruntime-fp16": theirs_half,
    "ours-int8": ours_int8,
    "onnxruntime-int8": theirs_int8,
}


if __name__ == "__main__":
    main()
