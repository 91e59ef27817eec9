"""Compare SAM's image encoder, its position biases summed first, with segment_anything's own module.

    python -m benchmarks.sam_encoder vit_b vit_h --rounds 5      (needs tensorrt-rtx)

Both are exported by the same exporter, weights drawn. In half precision TensorRT-RTX builds them, which needs
no GPU: how many attentions are fused, and the activations planned. In float32 ONNX Runtime runs them on the
CPU, in turns, each in a process of its own. Adds an entry per model to results/sam-encoder.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.fusion import as_exported, built
from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.recipe import GraphRecipe
from refdiff.contracts.spec import ModelSpec
from refdiff.engines.ort import OrtSession
from refdiff.export.onnx_export import export_graph
from refdiff.export.sam_graphs import SamEncoder
from refdiff.miniature.architecture import MINIATURE
from refdiff.models.sam import VIT_B, VIT_H, SamSizes, build_sam, sam_spec
from refdiff.models.stacks import random_module
from refdiff.passes.convert import convert_graph
from refdiff.passes.keep_fp32 import default_fp32_nodes

RECORD = RESULTS / "sam-encoder.json"

MODELS: Mapping[str, SamSizes] = {"vit_b": VIT_B, "vit_h": VIT_H}

FORMS: Mapping[str, Callable[[Any], torch.nn.Module]] = {
    "segment_anything": lambda sam: sam.image_encoder,
    "refdiff": SamEncoder,
}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help="internal: the graph that this process runs, a turn for each line")
    given = parser.parse_args()
    if given.serve:
        serve(given.models[0], Path(given.serve))
        return
    for model in given.models:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            add_entry(RECORD, model, measured(model, Path(folder), given.rounds))


def contract_of(model: str) -> tuple[ModelSpec, GraphSpec]:
    """Return the encoder's contract; the rest of the specification is the miniature's."""
    spec = replace(MINIATURE, sam=sam_spec(MODELS[model]))
    return spec, graph_contract(spec)["sam_encoder"]


def measured(model: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Both forms: what is built of them, and how long they run."""
    spec, graph = contract_of(model)
    sam = random_module(lambda: build_sam(MODELS[model]), seed=0, name="sam").eval()
    paths = {}
    for form, make in FORMS.items():
        (folder / form).mkdir()
        paths[form] = export_graph(make(sam).eval(), graph, folder / form)
    del sam
    plans = {form: planned(spec, path) for form, path in paths.items()}
    return {"plans": plans, "rounds": rounds, **turns(model, paths, rounds)}


def planned(spec: ModelSpec, path: Path) -> dict[str, Any]:
    """Build a form in half precision with TensorRT-RTX."""
    fp32 = default_fp32_nodes(ir.load(path).graph)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        half = Path(folder) / path.name
        convert_graph(path, half, GraphRecipe(half="fp16", fp32=fp32))
        plan = built(spec, "sam_encoder", half, as_exported)
    return {key: plan[key] for key in ("attentions", "fused", "activation_bytes", "plan_bytes")}


def turns(model: str, paths: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Median seconds on the CPU, and how far the embeddings are apart."""
    command = [sys.executable, "-m", "benchmarks.sam_encoder", model, "--serve"]
    workers = {
        form: subprocess.Popen(  # noqa: S603 - this file, by this interpreter
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for form, path in paths.items()
    }
    seconds: dict[str, list[float]] = {form: [] for form in workers}
    for turn in range(rounds + 1):
        for form, worker in workers.items():
            spent = ask(worker, "run")
            if turn:  # the first turn warms up
                seconds[form].append(spent)
    for worker in workers.values():
        ask(worker, "save")
        worker.communicate()
    ours, theirs = (np.load(paths[form].with_suffix(".npy")) for form in ("refdiff", "segment_anything"))
    return {
        "median_seconds": {form: round(statistics.median(each), 3) for form, each in seconds.items()},
        "largest_difference_over_range": float(np.abs(ours - theirs).max() / np.ptp(theirs)),
    }


def ask(worker: Any, order: str) -> float:
    """Send one line, and return the answer's one line."""
    worker.stdin.write(f"{order}\n")
    worker.stdin.flush()
    return float(json.loads(worker.stdout.readline()))


def serve(model: str, path: Path) -> None:
    """Run the graph for each line that says so, and answer with the seconds; keep the last embedding."""
    _, graph = contract_of(model)
    session = OrtSession(path, graph)
    image = np.random.default_rng(0).standard_normal(
        [int(side) for side in graph.inputs[0].shape], dtype=np.float32
    )
    for line in sys.stdin:
        started = time.perf_counter()
        if line.strip() == "run":
            embedding = session.run({"image": image})["embedding"]
        else:
            np.save(path.with_suffix(".npy"), embedding)
        print(json.dumps(time.perf_counter() - started), flush=True)  # noqa: T201 - for the parent


if __name__ == "__main__":
    main()
