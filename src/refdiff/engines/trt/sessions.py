"""The session factory of a bundle's plans, loaded late and held as the memory plan says.

In: a bundle, a TensorRT, CUDA, and the plans found. Out: sessions that share a stream and run one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.session import Measure
from refdiff.engines.memory_plan import MemoryPlan, plan_memory, read_memory
from refdiff.engines.trt.buffers import StreamContext
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.engine import Engine
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.plans import FoundPlan
from refdiff.engines.trt.runtime import JitCache, Library, map_plan
from refdiff.engines.trt.session import TrtSession
from refdiff.engines.trt.timing import LayerLog
from refdiff.engines.trt.validation import Verify, check_plan, check_validity
from refdiff.errors import BundleError, EngineError


class TrtSessions:
    """Opens a bundle's plans; nothing is on the device before the first graph is opened.

    The options are those of `open_plans`; `refused` maps a graph without a plan to the reason.

    Raises:
        InputError: the memory is neither a size nor a holding.
    """

    def __init__(
        self,
        bundle: Bundle,
        flavour: Flavour,
        cuda: Cuda,
        device: Device | None,
        *,
        plans: Mapping[str, FoundPlan],
        refused: Mapping[str, str],
        reason: str,
        memory: str | None = None,
        cuda_graphs: bool = True,
        measure: Measure | None = None,
    ) -> None:
        self._bundle = bundle
        self._flavour = flavour
        self._cuda = cuda
        self._device = device
        self._plans = dict(plans)
        self.refused = dict(refused)
        """Graph -> reason why it cannot be run."""
        self._budget, self._wanted = read_memory(memory)
        self._cuda_graphs = cuda_graphs
        self._measure = measure
        self._layers: dict[str, LayerLog] = {}
        self._contract = graph_contract(bundle.spec)
        self._library: Library | None = None
        self._context: StreamContext | None = None
        self._verified: set[str] = set()
        self._open: dict[str, TrtSession] = {}
        self.backend = flavour.name
        self.reason = reason
        self.memory: MemoryPlan | None = None
        """Way in which the plans are held; None before the first graph is opened."""

    def open(self, name: str) -> TrtSession:
        """Return the session of graph `name`, opened on the first call and kept; a failed one is replaced.

        Raises:
            BundleError: the bundle has no such graph.
            EngineError: the graph has no plan that fits, or there is too little memory.
        """
        session = self._open.get(name)
        if session is None or session.is_closed:
            session = self._open[name] = self._new_session(name)
        return session

    def close(self) -> None:
        """Close every session and free the device; calling it twice is fine."""
        context, self._context = self._context, None
        try:
            for session in self._open.values():
                session.close()
        finally:
            self._open.clear()
            self._library = None
            if context is not None:
                context.close()

    def _new_session(self, name: str) -> TrtSession:
        self._bundle.graph_path(name)
        if name not in self._contract:
            raise BundleError(
                f"{self._bundle.path} holds graph {name!r}, which this refdiff does not know; upgrade refdiff"
            )
        if name not in self._plans:
            raise EngineError(self.refused.get(name) or f"{self._bundle.path} has no plan of {name}")
        context = self._start()
        staged = self.memory is not None and self.memory.holding == "staged"
        shared = self.memory is not None and self.memory.holding == "shared"
        if self._measure == "layers":
            self._layers[name] = LayerLog(self._flavour.module)
        session = TrtSession(
            self._contract[name],
            context,
            partial(self._load, name),
            activations=context.activations if shared else None,
            before_run=self._make_room if staged else None,
            cuda_graphs=self._cuda_graphs,
            max_batch=self._plans[name].max_batch(self._contract[name]),
            timed=self._measure == "runs",
            layers=self._layers.get(name),
        )
        if not staged:
            session.load()
        return session

    def _start(self) -> StreamContext:
        """Plan the memory and make the context at the first call; return the context."""
        if self._context is None:
            sizes = [plan.size(self._contract[name]) for name, plan in self._plans.items()]
            free = self._cuda.free_memory()
            self.memory = plan_memory(sizes, free=free, budget=self._budget, holding=self._wanted)
            self._context = StreamContext(self._cuda)
        return self._context

    def _make_room(self, session: TrtSession) -> None:
        """Unload all other sessions, where plans are staged."""
        for other in self._open.values():
            if other is not session and other.is_loaded:
                other.unload()

    def _load(self, name: str) -> Engine:
        """Check the plan, every byte of it the first time, and load it to the device."""
        plan = self._plans[name]
        verify: Verify = "size" if name in self._verified else "hash"
        metadata = check_plan(plan.path, self._bundle, name, self._flavour, self._device, verify=verify)
        self._verified.add(name)
        if self._library is None:
            flags = [each.metadata.identity.flags for each in self._plans.values()]
            host_code = any(bool(each.get("version_compatible")) for each in flags)
            self._library = Library(self._flavour.module, host_code=host_code)
        content = map_plan(plan.path)
        check_validity(self._flavour, self._library.runtime, content, where=plan.path)
        cache = JitCache(plan.path, metadata.plan_sha256)
        stripped = bool(metadata.identity.flags.get("strip_weights"))
        weights = self._bundle.graph_path(name) if stripped else None
        layers = self._layers.get(name)
        return Engine(
            self._library, content, self._contract[name], cache=cache, weights=weights, layers=layers
        )
