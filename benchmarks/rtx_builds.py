"""Does TensorRT-RTX take every graph of a bundle, and what does building cost? No GPU is needed to ask.

    python -m benchmarks.rtx_builds BUNDLE [--graphs unet …] [--attention-op]      (needs tensorrt-rtx)
    python -m benchmarks.rtx_builds BUNDLE --converted KEPT/ours-fp16 --precision fp16
    python -m benchmarks.rtx_builds BUNDLE --write-feeds FEEDS    (then: refdiff convert BUNDLE --feeds FEEDS)

Each graph is built in its own process, at the sizes of the profile edge: by `refdiff build`, and the plans
stay in the bundle; or, of graphs that full_size_precision.py --keep left, by the same room, and the plans are
thrown away. Adds to an entry of results/rtx-builds.json.

With random weights no candidate may pass SAM's thresholds, and then `refdiff calibrate` records nothing for
`clip_image`. --write-feeds makes a recording of the golden record's inputs instead, one run of every graph:
enough for an int8 bundle whose sizes and fusion are the question.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry
from benchmarks.watched import run_watched
from refdiff.calibration.feeds import FeedStore, Run
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import options_for
from refdiff.contracts.progress import silent
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.monitor import Watch, make_log
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.plans import find_plans
from refdiff.engines.trt.shapes import shape_profiles
from refdiff.errors import EngineError

RECORD = RESULTS / "rtx-builds.json"


def main() -> None:
    """Build each graph and record what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", nargs="*")
    parser.add_argument("--converted", type=Path, help="a folder of graphs to build in place of the bundle's")
    parser.add_argument("--precision", help="of these graphs")
    parser.add_argument("--attention-op", action="store_true", help="as of refdiff build")
    parser.add_argument("--write-feeds", type=Path, help="write a recording of the golden inputs, and stop")
    parser.add_argument("--child", help="internal: the graph to build")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(alone(given.bundle, given.child, given.converted)))  # noqa: T201 - for the parent
        return
    bundle = open_bundle(given.bundle, verify="size")
    if given.write_feeds:
        write_feeds(bundle, given.write_feeds)
        return
    precision = given.precision or bundle.manifest.precision
    entry = f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {precision}"
    entry += ", attention-op" if given.attention_op else ""
    graphs = recorded(entry)
    found = list(bundle.manifest.graphs)
    if given.converted:
        found = [path.stem for path in sorted(given.converted.glob("*.onnx"))]
    for name in given.graphs or found:
        kept = precision if given.converted else bundle.manifest.graphs[name].precision
        graphs[name] = {"precision": kept, **built(given, name)}
        if graphs[name]["built"] and not given.converted:
            graphs[name]["tensor_bytes"] = tensor_bytes(bundle, name)
        print(name, graphs[name], flush=True)  # noqa: T201 - what a benchmark is for
    add_entry(RECORD, entry, {"tensorrt_rtx": load_flavour("tensorrt-rtx").version, "graphs": graphs})


def write_feeds(bundle: Bundle, folder: Path) -> None:
    """Write a finished recording whose only sample is the bundle's golden record."""
    sources = bundle.manifest.sources
    store = FeedStore.start(
        folder, model=bundle.spec.name, sources=sources, settings={"questions": "golden"}, planned=1
    )
    runs = [Run(graph=graph, position=0, feeds=feeds) for graph, (feeds, _) in bundle.golden().items()]
    store.add("golden", {"edge": runs})


def recorded(entry: str) -> dict[str, Any]:
    """Return the graphs that an entry already has."""
    document = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return dict(document.get(entry, {}).get("graphs", {}))


def built(given: argparse.Namespace, graph: str) -> dict[str, Any]:
    """Build one graph in a separate process."""
    command = [sys.executable, "-m", "refdiff", "build", str(given.bundle), "--flavour", "tensorrt-rtx"]
    command += ["--graph", graph, "--force", "--json"]
    command += ["--attention-op"] if given.attention_op else []
    if given.converted:
        command = [sys.executable, "-m", "benchmarks.rtx_builds", str(given.bundle), "--child", graph]
        command += ["--converted", str(given.converted)]
    try:
        watched = run_watched(command)
    except subprocess.CalledProcessError as error:
        return {"built": False, "error": json.loads(error.stdout)["error"]["message"]}
    answer = json.loads(watched.stdout)
    (result,) = answer.get("graphs", (answer,))
    if "error" in result:
        return {"built": False, "error": result["error"]}
    kept = {key: result[key] for key in ("seconds", "plan_bytes", "activation_bytes")}
    kept["attentions"] = len(result["attention"])
    kept["fused"] = sum(bool(block["fused"]) for block in result["attention"])
    memory = {key: getattr(watched, key) for key in ("peak_rss_bytes", "peak_private_bytes")}
    return {"built": True, **kept, **memory, "error": None}


def tensor_bytes(bundle: Bundle, graph: str) -> int:
    """Sum the largest sizes of the inputs and outputs of the plan that was just built."""
    found, _ = find_plans(bundle, load_flavour("tensorrt-rtx"), None)
    return found[graph].size(graph_contract(bundle.spec)[graph]).tensors


def alone(folder: Path, graph: str, converted: Path) -> dict[str, Any]:
    """Build a graph that is in no bundle, at the sizes of the one it was converted from."""
    bundle, flavour = open_bundle(folder, verify="size"), load_flavour("tensorrt-rtx")
    options = [options_for(bundle.spec, variant="edge")]
    shapes = shape_profiles(graph_contract(bundle.spec)[graph], bundle.spec, options)
    task = BuildTask(
        graph=graph, onnx=converted / f"{graph}.onnx", shapes=tuple(shapes), options=BuildOptions()
    )
    with tempfile.TemporaryDirectory(dir=converted) as scratch:
        target, log, started = Path(scratch) / "plan", make_log(flavour), time.perf_counter()
        try:
            built = build_plan(flavour, task, target, log, Watch(graph, silent))
        except EngineError as error:
            return {"error": str(error)}
        seconds = round(time.perf_counter() - started, 1)
        return {
            "seconds": seconds,
            "plan_bytes": target.stat().st_size,
            "activation_bytes": built.activation_bytes,
            "attention": [{"fused": block.fused} for block in built.attention],
        }


if __name__ == "__main__":
    main()
