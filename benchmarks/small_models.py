"""Multiply-adds and weights of the large models and of their published small counterparts, full size.

    .venv/bin/python -m benchmarks.small_models            # all
    .venv/bin/python -m benchmarks.small_models vae_encoder mobile_sam

Every graph is exported with zeros as weights and counted from its ONNX file; nothing is run. Images of 512 px
for the diffusion model, one pass of one branch, and one crop for CLIP. Adds an entry for each graph and
architecture to results/small-models.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.stack import ModelStack
from refdiff.export.onnx_export import export_graph
from refdiff.export.wrappers import wrap
from refdiff.models.stacks import random_stack
from refdiff.passes.early_exit import cut_taps
from refdiff.profiling.macs import count_macs

RECORD = RESULTS / "small-models.json"
SIZE = 512


@dataclass(frozen=True)
class Counted:
    """One architecture of one part."""

    graph: str
    component: str
    parts: dict[str, str]
    """Arguments of `random_stack`."""

    @property
    def name(self) -> str:
        """Name of the entry."""
        return f"{self.graph} {' '.join(self.parts.values())}"


CASES = (
    *(Counted("vae_encoder", "vae", {"vae": name}) for name in ("kl", "taesd")),
    *(
        Counted("unet_taps", "unet", {"diffusion": name, "taps": taps})
        for name in ("sd15", "bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny")
        for taps in ("all", "down")
    ),
    *(
        Counted("sam_encoder", "sam", {"sam": name})
        for name in ("vit_h", "vit_b", "mobile_sam", "efficientvit_sam_l0", "efficientvit_sam_xl0")
    ),
    *(Counted("clip_image", "clip", {"clip": name}) for name in ("vit_l_14", "vit_b_16", "vit_b_32")),
)


def main() -> None:
    """Export, count, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of graphs or architectures; all if left out")
    names = set(parser.parse_args().names)
    for case in CASES:
        if not names or names & {case.graph, *case.parts.values()}:
            add_entry(RECORD, case.name, count(case))


def count(case: Counted) -> dict[str, Any]:
    """Export one graph, and count its multiply-adds."""
    defaults = {"diffusion": "sd15", "sam": "vit_b", "clip": "vit_b_16"}
    options: dict[str, Any] = {**defaults, **case.parts}
    drawn: Any = random_stack("counted", **options, image_size=SIZE, seed=0)
    module = _with_zeros(drawn._loaders[case.component])
    stack = ModelStack.of(spec=drawn.spec, tokenizer_json="", sources={}, modules={case.component: module})
    contract, clip = graph_contract(stack.spec), stack.spec.clip
    with tempfile.TemporaryDirectory() as folder:
        name = "unet" if case.graph == "unet_taps" else case.graph
        path = export_graph(wrap(stack, name), contract[name], Path(folder))
        if name != case.graph:
            path = cut_taps(path, contract[case.graph], cut_after=stack.spec.diffusion.cut_after)
        patches = clip.grid**2
        macs = count_macs(path, {"b": 1, "p": patches, "c": 1, "t": patches + 1})
    return {
        "graph": case.graph,
        "parts": case.parts,
        "multiply_adds": macs,
        "weights": sum(tensor.numel() for tensor in _weights(module)),
        "maps": len(stack.spec.diffusion.tapped_layers) if name == "unet" else None,
        "cut_after": stack.spec.diffusion.cut_after if name == "unet" else None,
        "image_size": stack.spec.sam.image_size if name == "sam_encoder" else SIZE,
    }


def _with_zeros(loader: Any) -> torch.nn.Module:
    """Build a module as the loader of random weights does, without drawing them."""
    build, _ = loader.args
    with init_empty_weights(include_buffers=False):
        module: torch.nn.Module = build()
    zeros = {name: torch.zeros(each.shape) for name, each in module.state_dict().items() if each.is_meta}
    module.load_state_dict(zeros, assign=True, strict=False)
    return module.eval().requires_grad_(requires_grad=False)


def _weights(module: Any) -> Iterator[torch.Tensor]:
    """Yield the weights that the graph reads."""
    part = module
    for name in ("image_encoder", "visual"):
        part = getattr(module, name, part)
    yield from part.parameters()


if __name__ == "__main__":
    main()
