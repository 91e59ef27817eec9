"""Measure other ways to read the map from the UNet's logits (METHOD §10.8 to §10.12), and other timesteps.

    .venv/bin/python -m benchmarks.maps edge
    .venv/bin/python -m benchmarks.maps official
    .venv/bin/refdiff export mini --maps coarse,self -o BUNDLE
    .venv/bin/python -m benchmarks.maps edge --bundle BUNDLE

The miniature's fp32 bundle in ONNX Runtime on held-out scenes. The graphs run once per scene and timestep;
the readings are compared on the same logits. A bundle with more maps is measured with the readings of
METHOD §10.11 and §10.12, and what its outputs cost. Writes results/maps.json, one entry per variant.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import VARIANTS, AttentionOptions, BackendOptions, RunOptions
from refdiff.data.synthetic import RenderedScenes
from refdiff.engines.ort import OrtSession
from refdiff.evaluation.cached_scores import CachedScores, cache_scores
from refdiff.profiling.macs import count_macs

RECORD = RESULTS / "maps.json"
BASE = "as it is"
TIMESTEPS = (1, 101, 201, 301, 501)
RUNS, SCENES = 60, 20


def main() -> None:
    """Measure a variant and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=("edge", "official"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--bundle", default="mini")
    given = parser.parse_args()
    bundle, base = find_bundle(given.bundle), VARIANTS[given.variant].attention
    layers, more = bundle.spec.diffusion.tapped_layers, bool(bundle.spec.diffusion.maps)
    tried = more_readings(base) if more else readings(base, layers, sweep=given.variant == "edge")
    scenes = RenderedScenes(count=given.count)
    cached = cache_scores(
        given.bundle,
        scenes,
        list(tried.values()),
        options=RunOptions(variant=given.variant),
        backend=BackendOptions(threads=1),
        progress=_tell,
    )
    entry = {"seed": scenes.seed, "scenes": scenes.count, "readings": measured(cached, list(tried))}
    if more:
        entry["cost"] = {"as shipped": cost("mini"), "with more maps": cost(given.bundle)}
        entry["self_attention"] = self_attention(RenderedScenes(count=SCENES), given.variant)
    add_entry(RECORD, f"{given.variant}, more maps" if more else given.variant, entry)


def readings(
    base: AttentionOptions, layers: tuple[str, ...], *, sweep: bool
) -> Mapping[str, AttentionOptions]:
    """Return what is tried by name; `sweep` adds timesteps, and each runs the UNet again."""
    alone = {
        f"layer {name} alone": {"layer_weights": tuple(float(each == name) for each in layers)}
        for name in layers
    }
    changes: dict[str, dict[str, Any]] = {
        BASE: {},
        "rescaled over content tokens": {"rescale": True},
        "end token, 0.5": {"end_token": 0.5},
        "end token, 1": {"end_token": 1.0},
        "end token, 2": {"end_token": 2.0},
        "rescaled, end token 1": {"rescale": True, "end_token": 1.0},
        **alone,
    }
    if sweep:
        for t in TIMESTEPS:
            changes[f"t = {t}"] = {"timesteps": (t,), "start_level": t}
        changes["rescaled, end token 1, t = 201"] = {
            **changes["rescaled, end token 1"],
            **changes["t = 201"],
        }
    return {name: replace(base, **change) for name, change in changes.items()}


def more_readings(base: AttentionOptions) -> Mapping[str, AttentionOptions]:
    """Return what is tried by name where the graphs output the coarsest level and the self-attention."""
    changes: dict[str, dict[str, Any]] = {
        BASE: {},
        **{f"coarsest level, {weight:g}": {"coarse": weight} for weight in (1.0, 3.0)},
        **{f"propagated, {times}": {"propagate": times} for times in (1, 2, 4)},
        "coarsest level 1, propagated 1": {"coarse": 1.0, "propagate": 1},
        "rescaled, propagated 1": {"rescale": True, "propagate": 1},
        "end token 1, coarsest level 1, propagated 1": {"end_token": 1.0, "coarse": 1.0, "propagate": 1},
    }
    return {name: replace(base, **change) for name, change in changes.items()}


def cost(bundle: str) -> dict[str, Any]:
    """Return the multiply-adds of one row of `unet_taps`, its median time, and the bytes of its outputs."""
    opened = find_bundle(bundle)
    graph = graph_contract(opened.spec)["unet_taps"]
    session = OrtSession(opened.graph_path("unet_taps"), graph, threads=1)
    feeds = {name: values[:1] for name, values in opened.golden()["unet_taps"][0].items()}
    spent = []
    for _ in range(RUNS):
        start = time.process_time()
        outputs = session.run(feeds)
        spent.append(time.process_time() - start)
    return {
        "macs": count_macs(opened.graph_path("unet_taps"), {"b": 1}),
        "cpu_ms_p50": round(1000 * float(np.median(spent)), 3),
        "output_bytes": sum(each.nbytes for each in outputs.values()),
    }


def self_attention(scenes: RenderedScenes, variant: str) -> dict[str, float]:
    """Compare the softmax of head means with the head mean of softmaxes, in the torch reference.

    Returns:
        The perplexity of their rows, of as many cells, and their correlation.
    """
    import torch

    from refdiff.models.choice import load_miniature
    from refdiff.reference.diffusion import attend, encode_image, encode_prompts
    from refdiff.runtime.tokenizer import Tokenizer

    stack, options = load_miniature("the comparison"), VARIANTS[variant]
    tokenizer = Tokenizer(stack.tokenizer_json, stack.spec.context_length)
    found = []
    for scene in scenes:
        with torch.no_grad():
            latent = encode_image(stack, options, scene.read())
            context = encode_prompts(stack, tokenizer, scene.phrase)
            both = []
            for softmax in (False, True):
                attention = replace(options.attention, propagate=1, softmax=softmax)
                cells = attend(stack, attention, latent, context).cells
                both.append(np.asarray(cells))
        spreads = [np.exp(-(each * np.log(each)).sum(axis=1)).mean() for each in both]
        found.append((*spreads, np.corrcoef(both[0].ravel(), both[1].ravel())[0, 1]))
    names = ("perplexity", "perplexity_of_mean_softmaxes", "correlation")
    return dict(zip(names, map(float, np.mean(found, axis=0)), strict=True)) | {"cells": len(both[0])}


def measured(cached: CachedScores, names: list[str]) -> dict[str, Any]:
    """Return accuracy and contrast of each reading, and the difference to the first."""
    fusion = cached.options.fusion
    found: dict[str, Any] = {}
    ious: dict[tuple[str, str], NDArray[np.float64]] = {}
    for at, name in enumerate(names):
        found[name] = {"truth_contrast": float(cached.truth_contrast[at].mean())}
        for mode in ("full", "gen+seg"):
            chosen = cached.choose(fusion, at, heat_alone=mode == "gen+seg")
            intersection, union = cached.overlaps(chosen)
            ious[name, mode] = intersection / union
            gaps = 100 * (ious[name, mode] - ious[names[0], mode])
            found[name][mode] = {
                "miou": float(ious[name, mode].mean()),
                "oiou": float(intersection.sum() / union.sum()),
                "points": float(gaps.mean()),
                "standard_error": float(gaps.std(ddof=1) / np.sqrt(len(gaps))),
                "changed_answers": int(np.count_nonzero(gaps)),
            }
    return found


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
