"""What the tests of `check` share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.options import RunOptions
from refdiff.data.synthetic import RenderedScenes

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.feeds import FeedStore, Run
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.session import Array, half_rounded
from tests.support.damage import copy_of, rehash
from tests.support.small_graphs import BUNDLE

ONE_SCENE = RenderedScenes(count=1)
EDGE = (RunOptions(variant="edge"),)


def recorded(folder: Path, runs: dict[str, dict[str, Array]]) -> Path:
    manifest = open_bundle(BUNDLE, verify="size").manifest
    store = FeedStore.start(
        folder, model=manifest.spec.name, sources=manifest.sources, settings={}, planned=1
    )
    store.add(
        "one",
        {
            "edge": [
                Run(
                    graph=graph,
                    position=0,
                    feeds={
                        name: half_rounded(array) if array.dtype == np.float32 else array
                        for name, array in feeds.items()
                    },
                )
                for graph, feeds in runs.items()
            ]
        },
    )
    return folder


def with_golden(source: Path, target: Path, change: Callable[[dict[str, Array]], None]) -> Path:
    """A bundle with another golden record, its hashes in order."""
    bundle = copy_of(source, target)
    with np.load(bundle / "golden.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez_compressed(bundle / "golden.npz", **arrays)
    rehash(bundle, "golden.npz")
    return bundle


def squeezed(text: str) -> str:
    return " ".join(text.split())
