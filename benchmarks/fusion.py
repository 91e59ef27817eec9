"""Report which attentions TensorRT-RTX fuses, and whether the UNet's taps cost it any. No GPU is needed.

    python -m benchmarks.fusion BUNDLE [--graphs unet …]      (needs tensorrt-rtx)
    python -m benchmarks.fusion BUNDLE --converted KEPT/ours-fp16 --precision fp16

Every graph is built as it is. The UNet is built two ways more: without its taps, and with what the released
code reads in their place, the probabilities of its cross-attentions, as outputs. The sizes are those of the
profile edge; the plans are thrown away. Adds to an entry of results/fusion.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import options_for
from refdiff.contracts.progress import silent
from refdiff.contracts.spec import ModelSpec
from refdiff.engines.trt.attention_blocks import attention_blocks
from refdiff.engines.trt.building import BuildTask, build_parsed
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.monitor import Watch, make_log
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.parsing import check_parsed, parse
from refdiff.engines.trt.shapes import shape_profiles

RECORD = RESULTS / "fusion.json"

CROSS_ATTENTION = ".attn2/"
"""Part of the names of the UNet's cross-attentions, as diffusers calls them."""


def as_exported(network: Any) -> None:
    """Leave a network as it was parsed."""


def without_taps(network: Any) -> None:
    """Take the taps from the UNet's outputs; the builder drops what made them."""
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    network.unmark_output(next(each for each in outputs if each.name == "taps"))


def with_probabilities(network: Any) -> None:
    """Replace the taps by the probabilities of every cross-attention."""
    without_taps(network)
    crossed = {block.softmax for block in attention_blocks(network) if CROSS_ATTENTION in block.softmax}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        if layer.name in crossed:
            network.mark_output(layer.get_output(0))


Change = Callable[[Any], None]

VARIANTS: Mapping[str, Mapping[str, Change]] = {
    "unet": {
        "as exported": as_exported,
        "without taps": without_taps,
        "with probabilities": with_probabilities,
    }
}
"""Graph -> what it is built as; any other graph is built as exported."""


def main() -> None:
    """Build each graph and record what was fused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", nargs="*")
    parser.add_argument("--converted", type=Path, help="a folder of graphs to build in place of the bundle's")
    parser.add_argument("--precision", help="of these graphs")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, verify="size")
    entry = f"{bundle.spec.name} {bundle.spec.diffusion.image_size} "
    entry += given.precision or bundle.manifest.precision
    document = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    graphs = dict(document.get(entry, {}).get("graphs", {}))
    for name in given.graphs or bundle.manifest.graphs:
        onnx = given.converted / f"{name}.onnx" if given.converted else bundle.graph_path(name)
        variants = VARIANTS.get(name, {"as exported": as_exported})
        graphs[name] = {
            variant: built(bundle.spec, name, onnx, change) for variant, change in variants.items()
        }
        print(name, graphs[name], flush=True)  # noqa: T201 - what a benchmark is for
    add_entry(RECORD, entry, {"tensorrt_rtx": load_flavour("tensorrt-rtx").version, "graphs": graphs})


def built(spec: ModelSpec, graph: str, onnx: Path, change: Change) -> dict[str, Any]:
    """Build one graph, changed after parsing; return its attentions and what the builder planned."""
    flavour = load_flavour("tensorrt-rtx")
    variants = [options_for(spec, variant="edge")]
    shapes = shape_profiles(graph_contract(spec)[graph], spec, variants)
    task = BuildTask(graph=graph, onnx=onnx, shapes=tuple(shapes), options=BuildOptions())
    log, started = make_log(flavour), time.perf_counter()
    parsed = parse(flavour, onnx, log)
    check_parsed(parsed, flavour, graph)
    change(parsed.network)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "plan"
        made = build_parsed(flavour, parsed, task, target, log, Watch(graph, silent))
        size = target.stat().st_size
    unfused = [block for block in made.attention if not block.fused]
    return {
        "attentions": len(made.attention),
        "fused": len(made.attention) - len(unfused),
        "unfused": {block.softmax: list(block.obstacles) for block in unfused},
        "activation_bytes": made.activation_bytes,
        "plan_bytes": size,
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    main()
