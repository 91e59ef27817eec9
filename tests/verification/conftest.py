"""Bundles of the miniature in fewer bits, and a recording; read them, do not change them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def fp16(mini_in: Callable[[str], Path]) -> Path:
    """The miniature in half precision."""
    return mini_in("fp16")


@pytest.fixture(scope="session")
def int8(fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one graph in eight bits: an int8 bundle whose other graphs fell back."""
    from refdiff.passes.convert import convert_graph
    from tests.support.damage import copy_of, edit_manifest, rehash
    from tests.support.recipes import eight_bit_recipe_of
    from tests.support.small_graphs import BUNDLE

    folder = copy_of(fp16, tmp_path_factory.mktemp("eight") / "int8")
    path = folder / "sd_text.onnx"
    convert_graph(BUNDLE / path.name, path, eight_bit_recipe_of("sd_text").graphs["sd_text"])

    def relabel(document: Any) -> None:
        document["precision"] = document["graphs"]["sd_text"]["precision"] = "int8"

    edit_manifest(folder, relabel)
    for name in (path.name, f"{path.name}.data"):
        rehash(folder, name)
    return folder


@pytest.fixture(scope="session")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of one run of two graphs: what they were recorded on when they were exported."""
    from refdiff.contracts.bundle import open_bundle
    from tests.support.checked_bundles import recorded
    from tests.support.small_graphs import BUNDLE

    golden = open_bundle(BUNDLE, verify="size").golden()
    folder = tmp_path_factory.mktemp("recorded") / "feeds"
    return recorded(folder, {name: golden[name][0] for name in ("sd_text", "clip_image")})
