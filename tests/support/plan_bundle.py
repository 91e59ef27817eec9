"""A bundle of empty graphs with plans of the fake TensorRT, and a machine that runs them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts import bundle_writer
from refdiff.contracts.bundle import Bundle, GoldenTensors, GraphRecord, open_bundle
from refdiff.contracts.graphs import GraphSpec, graph_contract
from refdiff.contracts.options import options_for
from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.metadata import (
    PlanIdentity,
    PlanMetadata,
    graph_sha256,
    metadata_path,
    recipe_sha256,
)
from refdiff.engines.trt.plans import find_plans
from refdiff.engines.trt.sessions import TrtSessions
from refdiff.engines.trt.shapes import shape_profiles
from refdiff.engines.trt.trust import record_trust
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_machine import install_cuda, install_gpu, install_tensorrt
from tests.support.fake_tensorrt import FakeTensorRT, plan_of

SPEC = ModelSpec(
    name="paper doll",
    diffusion=DiffusionSpec(
        image_size=8,
        vae_factor=2,
        latent_channels=1,
        scaling_factor=1.0,
        context_width=2,
        tapped_layers=("mid_block",),
        tap_size=2,
        cut_after="mid_block",
    ),
    sam=SamSpec(image_size=8, embed_channels=2, embed_size=2),
    clip=ClipSpec(image_size=4, patch_size=2, width=2, embed_dim=2),
    context_length=4,
)

CONTRACT = graph_contract(SPEC)
GRAPHS = ("sam_encoder", "sam_decoder", "sam_masks", "unet")
GPU = Device(name="Fake 8.6", compute_capability="8.6", memory_bytes=1 << 30, driver_cuda="13.0")


def write_bundle(
    path: Path,
    graphs: Sequence[str] = GRAPHS,
    golden: GoldenTensors | None = None,
    random_seed: int | None = None,
) -> Bundle:
    with bundle_writer.write_bundle(path) as writer:
        records = {}
        for name in graphs:
            (writer.path / f"{name}.onnx").write_bytes(name.encode())
            graph = CONTRACT[name]
            records[name] = GraphRecord(
                files=(f"{name}.onnx",), precision="fp32", inputs=graph.inputs, outputs=graph.outputs
            )
        if golden is not None:
            writer.write_golden(golden)
        writer.describe(
            spec=SPEC, precision="fp32", sources={}, versions={}, graphs=records, random_seed=random_seed
        )
    return open_bundle(path)


def write_plan(bundle: Bundle, name: str, *, activations: int = 1000, padding: int = 0, **changes) -> Path:
    """A plan with its metadata; `changes` are of its identity."""
    graph: GraphSpec = CONTRACT[name]
    profiles = shape_profiles(graph, SPEC, [options_for(SPEC, variant="official")])
    ranges = [
        [{n: list(each.least) for n, each in p.items()}, {n: list(each.most) for n, each in p.items()}]
        for p in profiles
    ]
    content = plan_of(graph, profiles=ranges, activations=activations) + b" " * padding
    identity = replace(
        PlanIdentity(
            graph=name,
            onnx_sha256=graph_sha256(bundle.manifest, name),
            precision="fp32",
            recipe_sha256=recipe_sha256(bundle.manifest, name),
            shapes=profiles,
            flavour="tensorrt",
            version="10.3.0",
            targets=("8.6",),
            flags={},
        ),
        **changes,
    )
    plan = bundle.path / "engines" / identity.device_key / f"{name}.plan"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(content)
    metadata = PlanMetadata(
        identity=identity,
        plan_sha256=hashlib.sha256(content).hexdigest(),
        plan_bytes=len(content),
        activation_bytes=activations * 4,
        attention=(),
        seconds=1.0,
        built_on=None,
        refdiff_version="0",
    )
    metadata_path(plan).write_text(metadata.to_text())
    record_trust(metadata.plan_sha256)
    return plan


class Machine:
    """A GPU and a TensorRT that are not there."""

    def __init__(self, *, rtx: bool = False, total: int = 1 << 30) -> None:
        self.cuda = FakeCuda(total=total)
        self.trt = FakeTensorRT(self.cuda, rtx=rtx)
        self.flavour = Flavour(name="tensorrt-rtx" if rtx else "tensorrt", module=self.trt)

    def sessions(self, bundle: Bundle, **options) -> TrtSessions:
        plans, refused = find_plans(bundle, self.flavour, GPU)
        return TrtSessions(
            bundle,
            self.flavour,
            Cuda(self.cuda),
            GPU,
            plans=plans,
            refused=refused,
            reason="a test",
            **options,
        )

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch, device: Device | None = GPU) -> None:
        """Let it be the machine that everything finds."""
        install_tensorrt(monkeypatch, self.trt)
        install_cuda(monkeypatch, self.cuda)
        install_gpu(monkeypatch, device)


def feeds_of(name: str, batch: int = 1) -> dict[str, np.ndarray]:
    """Ones; a prompt has two tokens."""
    sizes = {"q": 2}
    return {
        t.name: np.ones([sizes.get(n, batch) if isinstance(n, str) else n for n in t.shape], t.dtype)
        for t in CONTRACT[name].inputs
    }
