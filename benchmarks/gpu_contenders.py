"""Contenders of the GPU benchmark: each runs a graph on host arrays, and again without copying them.

In: a bundle's folder and graph names. Out: outputs as arrays, and milliseconds by one clock for all:
`time.perf_counter`, read after the device was waited for.

    host     host arrays in, host arrays out
    device   what was fed before is on the device, outputs stay there
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.session import Array

Feeds = dict[str, Array]


class Contender(Protocol):
    """One way to run graphs; any exception it raises is recorded, and the others go on."""

    def open(self, graph: str, feeds: Feeds) -> dict[str, Any]:
        """Load a graph and run it until it is warm; return what is worth recording."""
        ...

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Host arrays in, host arrays out."""
        ...

    def repeat(self, graph: str) -> None:
        """Run on what is on the device, and wait for it."""
        ...


class Plans:
    """Our sessions on a bundle's plans, which are built first."""

    def __init__(self, folder: Path, flavour: str) -> None:
        from refdiff.engines import build
        from refdiff.engines.trt.open import open_plans

        self._flavour, self._folder = flavour, folder
        self._build, self._open_plans = build.build, open_plans
        self._sessions: dict[str, Any] = {}

    def open(self, graph: str, feeds: Feeds) -> dict[str, Any]:
        """Build, load, run; with CUDA graphs, and the reason where there are none."""
        started = time.perf_counter()
        report = self._build(
            self._folder, flavour=self._flavour, graphs=[graph], variants=["edge", "official"]
        )
        built = time.perf_counter()
        bundle = open_bundle(self._folder, verify="size")
        sessions = self._open_plans(bundle, self._flavour, reason="measured")
        session = self._sessions[graph] = sessions.open(graph)
        loaded = time.perf_counter()
        session.run(feeds)
        first = time.perf_counter()
        for _ in range(3):
            session.run(feeds)
        plan = report.graphs[0].metadata
        return {
            "version": report.version,
            "build_s": round(built - started, 2),
            "load_s": round(loaded - built, 2),
            "first_run_s": round(first - loaded, 2),
            "plan_bytes": plan.plan_bytes,
            "activation_bytes": plan.activation_bytes,
            "cuda_graph": session.cuda_graph.is_captured,
            "no_cuda_graph_because": session.cuda_graph.refusal,
            "holding": None if sessions.memory is None else sessions.memory.holding,
        }

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """See `Contender`."""
        return dict(self._sessions[graph].run(feeds))

    def repeat(self, graph: str) -> None:
        """See `Contender`."""
        self._sessions[graph].repeat()


class Ort:
    """ONNX Runtime, by our session; repeats with bound inputs and outputs.

    "ort-cuda" runs the forms of the graphs, which are made first; "ort-cuda-plain" the graphs themselves,
    with the same options of the provider.
    """

    def __init__(self, folder: Path, name: str) -> None:
        backend = name.removesuffix("-plain")
        from refdiff.engines.factory import import_ort

        onnxruntime = import_ort(backend).ort
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries from the packages installed with it
        self._ort, self._backend, self._has_form = onnxruntime, backend, name == "ort-cuda"
        self._bundle = open_bundle(folder, verify="size")
        self._sessions: dict[str, Any] = {}
        self._bound: dict[str, tuple[Any, Any]] = {}

    def open(self, graph: str, feeds: Feeds) -> dict[str, Any]:
        """Load, run, bind."""
        from refdiff.engines.cuda_forms import CudaForms
        from refdiff.engines.ort import OrtSession

        started = time.perf_counter()
        contract = graph_contract(self._bundle.spec)[graph]
        form = CudaForms(self._bundle, self._ort.__version__).build(graph).data if self._has_form else None
        session = OrtSession(self._bundle.graph_path(graph), contract, backend=self._backend, form=form)
        for _ in range(3):
            session.run(feeds)
        self._sessions[graph] = session
        raw = session._session
        binding = raw.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in contract.output_names:
            binding.bind_output(name, "cuda")
        self._bound[graph] = raw, binding
        return {
            "version": self._ort.__version__,
            "open_s": round(time.perf_counter() - started, 2),
            "form": self._has_form,
        }

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """See `Contender`."""
        outputs: Feeds = self._sessions[graph].run(feeds)
        return outputs

    def repeat(self, graph: str) -> None:
        """See `Contender`."""
        session, binding = self._bound[graph]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()


class Torch:
    """The exporter's own modules in torch, eager or compiled."""

    def __init__(self, folder: Path, programs: Path | None, *, compiled: bool) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._torch, self._compiled, self._programs = torch, compiled, programs
        self._bundle = open_bundle(folder, verify="size")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self._half = half.get(self._bundle.manifest.precision)
        self._modules: dict[str, Callable[..., Any]] = {}
        self._inputs: dict[str, list[Any]] = {}

    def open(self, graph: str, feeds: Feeds) -> dict[str, Any]:
        """Load, compile if that is asked for, run."""
        started, torch = time.perf_counter(), self._torch
        module = self._module(graph).to("cuda")
        self._modules[graph] = torch.compile(module) if self._compiled else module
        self._inputs[graph] = self._on_device(graph, feeds)
        for _ in range(3):
            self.repeat(graph)
        return {
            "version": torch.__version__,
            "precision": "float32, no TF32" if self._half is None else f"autocast {self._half}",
            "source": "exported program" if self._programs is not None else "modules",
            "open_s": round(time.perf_counter() - started, 2),
        }

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """See `Contender`."""
        results = self._call(graph, self._on_device(graph, feeds))
        names = graph_contract(self._bundle.spec)[graph].output_names
        return {name: np.asarray(each.float().cpu()) for name, each in zip(names, results, strict=True)}

    def repeat(self, graph: str) -> None:
        """See `Contender`."""
        self._call(graph, self._inputs[graph])
        self._torch.cuda.synchronize()

    def _module(self, graph: str) -> Any:
        if self._programs is not None:
            return self._torch.export.load(self._programs / f"{graph}.pt2").module()
        from refdiff.export.wrappers import wrap
        from refdiff.models.choice import ModelChoice, load_choice

        spec, seed = self._bundle.spec, self._bundle.manifest.random_seed
        choice = ModelChoice(name=spec.name)
        if seed is not None:
            choice = replace(choice, random_weights=True, seed=seed, size=spec.diffusion.image_size)
        return wrap(load_choice(choice, "measuring torch"), graph)

    def _on_device(self, graph: str, feeds: Feeds) -> list[Any]:
        names = graph_contract(self._bundle.spec)[graph].input_names
        return [self._torch.from_numpy(np.array(feeds[name])).to("cuda") for name in names]

    def _call(self, graph: str, inputs: list[Any]) -> tuple[Any, ...]:
        torch = self._torch
        with torch.inference_mode(), torch.autocast("cuda", self._half, enabled=self._half is not None):
            results = self._modules[graph](*inputs)
        return (results,) if isinstance(results, torch.Tensor) else tuple(results)


def make(name: str, folder: Path, programs: Path | None) -> Contender:
    """Return the contender of that name."""
    if name.startswith("ort-"):
        return Ort(folder, name)
    if name.startswith("torch-"):
        return Torch(folder, programs, compiled=name == "torch-compile")
    return Plans(folder, name)


CONTENDERS = (
    "tensorrt",
    "tensorrt-rtx",
    "ort-cuda",
    "ort-cuda-plain",
    "ort-tensorrt",
    "torch-eager",
    "torch-compile",
)
