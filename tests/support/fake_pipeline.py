"""Sessions that answer with arrays in the contract's shapes, and a segmenter over them."""

import dataclasses
import string

import numpy as np

from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import VARIANTS, Options
from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.runtime.clip_branch import ClipBranch
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer, build_tokenizer_json
from tests.support.prompts import first_places, readable_vectors

SPEC = ModelSpec(
    name="fake",
    diffusion=DiffusionSpec(
        image_size=64,
        vae_factor=8,
        latent_channels=4,
        scaling_factor=0.2,
        context_width=6,
        tapped_layers=("a", "b"),
        tap_size=4,
        cut_after="up_blocks.1",
    ),
    sam=SamSpec(image_size=64, embed_channels=8, embed_size=4),
    clip=ClipSpec(image_size=32, patch_size=8, width=6, embed_dim=5),
)
SIZE = (48, 90)
POSITIONS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


class FakeSession:
    """Deterministic arrays in the contract's shapes; SAM's decoder answers with a disk around each point."""

    def __init__(self, graph, log, spoil):
        self.graph, self.max_batch, self._log, self._spoil = graph, None, log, spoil

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        sizes = {}
        assert set(feeds) == set(self.graph.input_names)
        for spec in self.graph.inputs:
            assert feeds[spec.name].dtype == spec.dtype, spec.name
            assert len(feeds[spec.name].shape) == len(spec.shape), spec.name
            for wanted, got in zip(spec.shape, feeds[spec.name].shape, strict=True):
                assert sizes.setdefault(wanted, got) == got, spec.name
                assert got == wanted or isinstance(wanted, str), spec.name
        self._log.append((self.graph.name, {name: feed.shape for name, feed in feeds.items()}))
        if self.graph.name == "sam_decoder":
            return decoded(first_places(feeds["prompts"], SPEC.sam))
        if self.graph.name == "sam_masks":
            return disks(feeds["features"][feeds["chosen"], 0, :2])
        if self.graph.name == "clip_image":
            assert sizes["t"] == sizes["c"] + sizes["p"]
        seed = int(sum(np.abs(feed.astype(np.float64)).sum() for feed in feeds.values()) * 1e3) % 2**32
        rng = np.random.default_rng(seed)
        shapes = {o.name: [sizes.get(d, d) for d in o.shape] for o in self.graph.outputs}
        made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        if self.graph.name == self._spoil:
            made = {name: array * np.nan for name, array in made.items()}
        return made

    def close(self):
        pass


def decoded(points):
    count = len(points)
    iou = np.tile(np.array([0.95, 0.92, 0.5], np.float32), (count, 1)) - np.arange(count)[:, None] / 1000
    features = np.zeros((count, 16, 8), np.float32)  # enough to draw from
    features[:, 0, :2] = points
    return {
        "iou": iou.astype(np.float32),
        "tokens": np.zeros((count, 3, 8), np.float32),
        "features": features,
    }


def disks(points):
    y, x = np.mgrid[:16, :16] * 4 + 2
    distance = np.hypot(y - points[:, 1, None, None], x - points[:, 0, None, None])
    radii = np.array([6.0, 12.0, 20.0])[None, :, None, None]
    return {"low_res": ((radii - distance[:, None]) * 9).astype(np.float32)}


class FakeFactory:
    def __init__(self, spoil=None):
        self.log, self.closed, self._spoil = [], 0, spoil

    def open(self, name):
        return FakeSession(graph_contract(SPEC)[name], self.log, self._spoil)

    def close(self):
        self.closed += 1

    def ran(self, name):
        return sum(graph == name for graph, _ in self.log)


def fake_tokenizer():
    letters = [letter + end for letter in string.ascii_lowercase + ",." for end in ("", "</w>")]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
    return Tokenizer(build_tokenizer_json({t: i for i, t in enumerate(tokens)}, []), SPEC.context_length)


def fake_options(variant="official", mode="full", **changes):
    return dataclasses.replace(VARIANTS[variant], mode=mode, **changes)


def fake_segmenter(variant="official", mode="full", factory=None, cautions=(), **changes):
    return Segmenter(
        sessions=factory or FakeFactory(),
        spec=SPEC,
        options=fake_options(variant, mode, **changes),
        tokenizer=fake_tokenizer(),
        positions=POSITIONS,
        prompts=readable_vectors(SPEC.sam),
        cautions=cautions,
    )


def fake_branch(factory, crops=None):
    """CLIP's branch alone, without the other stages."""
    options = Options(crops=crops or VARIANTS["official"].crops)
    return ClipBranch(factory, SPEC.clip, options, fake_tokenizer(), POSITIONS)


def fake_image(size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
