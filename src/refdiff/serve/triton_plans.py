"""Choose the plans that a Triton server loads: TensorRT refuses plans of any other version.

In: a bundle, and what the user says of the server. Out: a verified plan for each graph, or why there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from refdiff.contracts.bundle import Bundle
from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.metadata import AMPERE_PLUS, PlanMetadata, read_metadata
from refdiff.engines.trt.plan_store import plans_folder
from refdiff.engines.trt.validation import check_plan
from refdiff.errors import EngineError, InputError

CONTAINERS: Mapping[str, str] = {
    **dict.fromkeys((f"26.{month:02}-trtllm-python-py3" for month in range(3, 8)), "10.14.1.48"),
    **dict.fromkeys((f"26.{month:02}-trtllm-python-py3" for month in (1, 2)), "10.13.3.9"),
    **dict.fromkeys((f"25.{month:02}-trtllm-python-py3" for month in (11, 12)), "10.13.3.9"),
    **dict.fromkeys((f"25.{month:02}-trtllm-python-py3" for month in (8, 9, 10)), "10.11.0.33"),
    **dict.fromkeys((f"25.{month:02}-trtllm-python-py3" for month in (6, 7)), "10.10.0.31"),
    **dict.fromkeys((f"25.{month:02}-trtllm-python-py3" for month in (3, 4, 5)), "10.9.0.34"),
    **dict.fromkeys((f"25.{month:02}-trtllm-python-py3" for month in (1, 2)), "10.8.0.43"),
}
"""Tag of nvcr.io/nvidia/tritonserver -> its TensorRT. Source: the release compatibility matrix of
triton-inference-server/server, docs/introduction/compatibility.md at 0f963c9. It has no others, and the
containers of one month differ, so any other container has to be asked."""

_TENSORRT = re.compile(r"(\d+\.\d+\.\d+(?:\.\d+)?)(?:\+.*|\.post\d+)?")
"""As TRT_VERSION has it in the containers, such as 10.13.3.9+cuda13.0, and as pip has it."""
_MONTH = re.compile(r"\d\d\.\d\d")
_TAG = re.compile(r"\d\d\.\d\d-[\w.-]+")


def server_tensorrt(server: str) -> str:
    """Return the version of a server's TensorRT.

    Args:
        server: that version itself, such as 10.13.3.9; or the tag of a container, such as
            25.10-trtllm-python-py3. A month alone, 25.10, is the container 25.10-py3.

    Raises:
        InputError: neither, or a container whose TensorRT is not known here.
    """
    version = _TENSORRT.fullmatch(server)
    if version is not None:
        return version[1]
    tag = f"{server}-py3" if _MONTH.fullmatch(server) else server
    if tag in CONTAINERS:
        return CONTAINERS[tag]
    if _TAG.fullmatch(tag) is None:
        raise InputError(
            f"got server version {server!r}, expected the tag of a Triton container, such as "
            f"{next(iter(CONTAINERS))}, or the version of its TensorRT, such as 10.13.3.9"
        )
    raise InputError(
        f"the TensorRT of tritonserver:{tag} is not known here; print it with: docker run --rm "
        f"nvcr.io/nvidia/tritonserver:{tag} printenv TRT_VERSION, and name that version with --server-version"
    )


def version_fits(plan: str, server: str, *, compatible: bool) -> bool:
    """Return whether a server's TensorRT loads a plan.

    Args:
        plan: version of TensorRT that built it; JetPack's has three numbers.
        server: version of the server's TensorRT.
        compatible: the plan was built to run with later versions of the same major one.
    """
    built, here = _numbers(plan), _numbers(server)
    shared = min(len(built), len(here))
    if shared >= 3 and built[:shared] == here[:shared]:
        return True
    return compatible and built[:1] == here[:1] and built <= here


def _numbers(version: str) -> tuple[int, ...]:
    found = _TENSORRT.fullmatch(version)
    return () if found is None else tuple(int(part) for part in found[1].split("."))


@dataclass(frozen=True, kw_only=True)
class ChosenPlan:
    """A plan that the server loads."""

    path: Path
    metadata: PlanMetadata


def choose_plans(
    bundle: Bundle, server_version: str, compute_capability: str | None
) -> Mapping[str, ChosenPlan]:
    """Return the plan of each graph that the server loads; their bytes are verified.

    Args:
        bundle: a verified bundle.
        server_version: see `server_tensorrt`.
        compute_capability: GPU of the server, such as 8.6; None: the bundle has plans for one alone.

    Raises:
        InputError: the server's TensorRT is not known, or there are plans for several GPUs.
        EngineError: a graph has no plan, or one that the server refuses.
    """
    server = server_tensorrt(server_version)
    return {
        graph: _choose_plan(bundle, graph, server, compute_capability) for graph in bundle.manifest.graphs
    }


def _choose_plan(bundle: Bundle, graph: str, server: str, capability: str | None) -> ChosenPlan:
    cure = f"refdiff build {bundle.path} --flavour tensorrt --graph {graph}"
    found = list(_plans_of(bundle, graph, capability))
    if not found:
        wanted = "" if capability is None else f" for {capability}"
        raise EngineError(
            f"{bundle.path} has no TensorRT plan of {graph}{wanted}; build it with: {cure} (plans of "
            "TensorRT-RTX are not loaded by Triton)"
        )
    if len(found) > 1:
        targets = sorted(" and ".join(each.metadata.identity.targets) for each in found)
        raise InputError(
            f"{bundle.path} has plans of {graph} for {', '.join(targets)}; choose with --compute-capability"
        )
    identity, plan = found[0].metadata.identity, found[0].path
    compatible = bool(identity.flags.get("version_compatible", False))
    if not version_fits(identity.version, server, compatible=compatible):
        raise EngineError(
            f"{plan} was built with TensorRT {identity.version}, the server has {server} and refuses it; "
            f"build it with the server's TensorRT, in its container: {cure}"
        )
    if identity.flags.get("strip_weights", False):
        raise EngineError(f"{plan} has no weights, and Triton adds none; build it again with: {cure} --force")
    builder: Any = SimpleNamespace(__version__=identity.version)
    check_plan(plan, bundle, graph, Flavour(name="tensorrt", module=builder), None)
    return found[0]


def _plans_of(bundle: Bundle, graph: str, capability: str | None) -> Iterator[ChosenPlan]:
    for plan in sorted(plans_folder(bundle).glob(f"*/{graph}.plan")):
        metadata = read_metadata(plan)
        targets = metadata.identity.targets
        if metadata.identity.flavour == "tensorrt" and (
            capability is None or capability in targets or targets == (AMPERE_PLUS,)
        ):
            yield ChosenPlan(path=plan, metadata=metadata)
