"""Measure what the early exit saves: time and multiply-adds of `unet_taps` against `unet`.

    .venv/bin/python -m benchmarks.early_exit BUNDLE --rounds 5

The two graphs run in ONNX Runtime on the CPU, in turns, on the same feeds of both guidance branches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.session import Array
from refdiff.contracts.spec import ModelSpec
from refdiff.engines.ort import OrtSession
from refdiff.profiling.macs import count_macs

RECORD = RESULTS / "early-exit.json"
GRAPHS = ("unet", "unet_taps")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, verify="size")
    contract, feeds = graph_contract(bundle.spec), make_feeds(bundle.spec)
    sessions = {name: OrtSession(bundle.graph_path(name), contract[name]) for name in GRAPHS}
    outputs = {name: session.run(feeds) for name, session in sessions.items()}  # and warm up
    seconds: dict[str, list[float]] = {name: [] for name in GRAPHS}
    for _ in range(given.rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(feeds)
            seconds[name].append(time.perf_counter() - started)
    counts = {name: count_macs(bundle.graph_path(name), {"b": 1}) for name in GRAPHS}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    entry = {
        "batch": 2,
        "rounds": given.rounds,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "time_ratio": round(medians["unet_taps"] / medians["unet"], 4),
        "multiply_adds_per_picture": counts,
        "multiply_adds_ratio": round(counts["unet_taps"] / counts["unet"], 4),
        "largest_difference_of_taps": float(
            np.abs(outputs["unet"]["taps"] - outputs["unet_taps"]["taps"]).max()
        ),
        "range_of_taps": float(np.ptp(outputs["unet"]["taps"])),
    }
    add_entry(RECORD, f"{bundle.spec.name} {bundle.spec.diffusion.image_size}", entry)


def make_feeds(spec: ModelSpec) -> dict[str, Array]:
    """Return a latent and the contexts of both branches, in real sizes."""
    rng, diffusion = np.random.default_rng(0), spec.diffusion
    latent = (2, diffusion.latent_channels, diffusion.latent_size, diffusion.latent_size)
    return {
        "latent": rng.standard_normal(latent, dtype=np.float32),
        "timestep": np.full(2, 51, np.float32),
        "context": rng.standard_normal((2, spec.context_length, diffusion.context_width), dtype=np.float32),
    }


if __name__ == "__main__":
    main()
