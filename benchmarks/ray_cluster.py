"""An evaluation on a Ray cluster of three nodes in this machine: digits, a node that is lost, throughput.

    .venv/bin/python -m benchmarks.ray_cluster

The nodes are processes of one machine with a CPU each, so that throughput is bounded by its cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry
from refdiff.batch.distributed import RayOptions, import_ray
from refdiff.contracts.options import BackendOptions
from refdiff.data.synthetic import RenderedScenes
from refdiff.evaluation.evaluate import EvaluationReport, evaluate
from refdiff.evaluation.records import RECORDS_NAME

RECORD = RESULTS / "ray.json"
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
SCENES = RenderedScenes(count=60)
ACTORS = (1, 2)


def main() -> None:
    """Measure and record."""
    import_ray()
    from ray.cluster_utils import Cluster

    load = os.getloadavg()[0]
    one = _timed(lambda: _evaluate(1))
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    extra = [cluster.add_node(**NODE) for _ in range(2)]
    entry: dict[str, Any] = {"scenes": len(SCENES), "nodes": 3, "load_average": round(load, 1)}
    entry["one_process"] = {"seconds": one[0]}
    for count in ACTORS:
        entry[f"{count} actors"] = _measure(RayOptions(address=cluster.address, workers=count), one[1])
    entry["a node lost"] = _lose_a_node(cluster, extra[0], one[1])
    cluster.shutdown()
    add_entry(RECORD, f"{len(SCENES)} scenes", entry)


def _measure(where: RayOptions, one: EvaluationReport) -> dict[str, Any]:
    """Time an evaluation, with the start of the actors and without."""
    arrivals: list[float] = []
    seconds, report = _timed(lambda: _evaluate(where, lambda: arrivals.append(time.perf_counter())))
    steady = (len(SCENES) - 10) / (arrivals[-1] - arrivals[0])
    return {
        "seconds": seconds,
        "scenes_per_second_after_the_first_ten": round(steady, 2),
        "same_records": report.records == one.records,
    }


def _lose_a_node(cluster: Any, node: Any, one: EvaluationReport) -> dict[str, Any]:
    """Remove a node after twenty records."""
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"

        def watch() -> None:
            if len(_lines(output)) == 20:
                cluster.remove_node(node)

        where = RayOptions(address=cluster.address, workers=3)
        _, report = _timed(lambda: _evaluate(where, watch, output, lost))
        lines = _lines(output)
    return {
        "notes": [line for line in lost if "lost" in line],
        "records": len(lines),
        "records_twice": len(lines) - len(set(lines)),
        "same_records": report.records == one.records,
    }


def _lines(output: Path) -> list[str]:
    return (output / RECORDS_NAME).read_text(encoding="utf-8").splitlines()


def _evaluate(
    jobs: int | RayOptions,
    at_ten: Callable[[], None] = lambda: None,
    output: Path | None = None,
    said: list[str] | None = None,
) -> EvaluationReport:
    """Evaluate the scenes; `at_ten` is called after every tenth."""

    def progress(step: str) -> None:
        if said is not None:
            said.append(str(step))
        if "samples" in step:
            at_ten()

    backend = BackendOptions(threads=1)
    return evaluate("mini", SCENES, jobs=jobs, backend=backend, output=output, progress=progress)


def _timed(run: Callable[[], EvaluationReport]) -> tuple[float, EvaluationReport]:
    start = time.perf_counter()
    report = run()
    return round(time.perf_counter() - start, 1), report


if __name__ == "__main__":
    main()
