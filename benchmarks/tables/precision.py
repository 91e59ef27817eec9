"""Tables of fewer bits and of engines: precisions, plans, fused attention, memory, times on a GPU."""

from __future__ import annotations

from typing import Any

from refdiff.contracts.graphs import GRAPHS
from refdiff.engines.memory_plan import HOLDINGS, EngineSize, peak_bytes

SHOWN = ("fp32", "fp16", "bf16", "int8", "fp8")
FULL_SIZE = ("refdiff-edge 512", "refdiff-vitb 512", "refdiff 512")
"""Prefixes of the entries of full-size bundles."""
OWN_CHOICE = "TensorRT's own choice"
IN_FLOAT32 = "products in float32"
_SIZES = ("peak_private_bytes", "peak_rss_bytes", "written_bytes")


def regions_table(record: dict[str, Any]) -> str:
    """Return one row per fp32 region that was tried."""
    rows = ["| in fp32 | activation memory planned by the builder |", "|---|---|"]
    rows += [f"| {name} | {entry['activation_bytes'] / 1e6:.0f} MB |" for name, entry in record.items()]
    return "\n".join(rows)


def precision_table(record: dict[str, Any]) -> str:
    """Return one row per precision and variant."""
    rows = [
        "| bundle | size | variant | executed by | mIoU | points lost "
        "| same choice | mask IoU | heat correlation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = [name for name in SHOWN if name in record] + sorted(set(record) - set(SHOWN))
    full = record["fp32"]
    for name in names:
        entry = record[name]
        size = f"{entry['size_bytes'] / 1e6:.1f} MB, {entry['size_bytes'] / full['size_bytes']:.3f}x"
        for variant, backends in entry["profiles"].items():
            for backend, measured in backends.items():
                miou = measured["metrics"]["miou"]
                lost = 100 * (full["profiles"][variant]["ort-cpu"]["metrics"]["miou"] - miou)
                agreed = measured["agreement_with_fp32"]
                cells = [
                    *(f"`{name}`", size, f"`{variant}`", f"`{backend}`", f"{miou:.4f}", f"{lost:+.2f}"),
                    f"{agreed['argmax_agreement']:.3f}",
                    f"{agreed['mask_iou']:.4f}",
                    f"{agreed['heat_correlation']:.6f}",
                ]
                rows.append(f"| {' | '.join(cells)} |")
    counts = sorted({(entry["scenes"], entry["seed"]) for entry in record.values()}, reverse=True)
    lines = []
    for count, seed in counts:
        some = [n for n in names if (record[n]["scenes"], record[n]["seed"]) == (count, seed)]
        lines.append(f"{', '.join(f'`{n}`' for n in some)}: {count} scenes from seed {seed}")
    return "\n".join(rows) + f"\n\n{'; '.join(lines)}."


def cuda_table(record: dict[str, Any]) -> str:
    """Return one row per bundle and variant."""
    rows = [
        "| bundle | variant | mIoU | mask IoU | masks with an IoU of 0.99 or more | heat correlation |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for variant, backends in entry["profiles"].items():
            measured = backends["ort-cuda"]
            agreed = measured["agreement_with_fp32"]
            cells = [
                *(f"{name}", f"`{variant}`", f"{measured['metrics']['miou']:.4f}"),
                f"{agreed['mask_iou']:.4f}",
                f"{agreed['answers_with_iou_0.99']:.3f}",
                f"{agreed['heat_correlation']:.6f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def conversions_table(record: dict[str, Any]) -> str:
    """Return one row per graph and tool."""
    rows = [
        "| graph | tool | conversion, s | with start and ranges, s "
        "| private memory | peak memory | written |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for tool, run in entry["conversions"].items():
            if "failed" in run:
                rows.append(f"| `{name}` | {tool} | failed: {run['failed']} | | | | |")
                continue
            sizes = (f"{run[key] / 1e9:.2f} GB" for key in _SIZES)
            times = f"{run['conversion_seconds']:.1f} | {run['seconds']:.1f}"
            rows.append(f"| `{name}` | {tool} | {times} | {' | '.join(sizes)} |")
    return "\n".join(rows)


def builds_table(record: dict[str, Any]) -> str:
    """Return one row per bundle."""
    rows = ["| bundle | graphs built | plans | largest activations | seconds |", "|---|---|---|---|---|"]
    for name, entry in record.items():
        graphs = entry["graphs"].values()
        built = [graph for graph in graphs if graph["built"]]
        cells = [
            f"{len(built)} of {len(entry['graphs'])}",
            f"{sum(graph['plan_bytes'] for graph in built) / 1e6:.0f} MB",
            f"{max((graph['activation_bytes'] or 0 for graph in built), default=0) / 1e6:.0f} MB",
            f"{sum(graph['seconds'] for graph in built):.0f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def memory_table(record: dict[str, Any]) -> str:
    """Return one row per full-size bundle: the device memory of its plans, for each way to hold them."""
    rows = [f"| bundle, px | plans | {' | '.join(HOLDINGS)} |", f"|---|---|{'---|' * len(HOLDINGS)}"]
    for name, entry in record.items():
        if not name.startswith(FULL_SIZE) or "attention-op" in name or "unet" not in entry["graphs"]:
            continue
        sizes = [
            EngineSize(
                name=graph,
                weights=each["plan_bytes"],
                activations=each["activation_bytes"],
                tensors=each.get("tensor_bytes", 0),
            )
            for graph, each in entry["graphs"].items()
            if each["built"] and graph != "unet_taps"  # a part of `unet`
        ]
        held = [f"{peak_bytes(sizes, holding) / 1e9:.1f} GB" for holding in HOLDINGS]
        weights = sum(each.weights for each in sizes)
        rows.append(f"| {name} | {weights / 1e9:.1f} GB | {' | '.join(held)} |")
    return "\n".join(rows)


def gpu_table(record: dict[str, Any]) -> str:
    """Return one row per graph of each run in which torch and ONNX Runtime took turns."""
    others = ("torch-eager", "torch-compile")
    rows = [
        "| bundle, graph | ort-cuda | torch-eager | torch-compile | eager / ort-cuda | compile / ort-cuda |",
        "|---|---|---|---|---|---|",
    ]
    for run, entry in record.items():
        for graph, of in entry["graphs"].items():
            measured = of["contenders"]
            if "ort-cuda" not in measured or "torch-eager" not in measured:
                continue
            ours = measured["ort-cuda"]["device_ms"]["p50"]
            cells = [_percentiles(measured.get(name)) for name in ("ort-cuda", *others)]
            cells += [
                f"{measured[name]['device_ms']['p50'] / ours:.2f}x" if name in measured else ""
                for name in others
            ]
            rows.append(f"| {run.split(',')[0]} `{graph}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _percentiles(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "not ready in time"
    times = measured["device_ms"]
    figures = " / ".join(f"{times[key]:.2f}" for key in ("p50", "p90", "p99"))
    return f"{figures}; {measured['error']:.0e}"


def fusion_table(record: dict[str, Any]) -> str:
    """Return one row per graph, and per way to build the UNet; a column per bundle in half precision."""
    halves = {name: entry["graphs"] for name, entry in record.items() if name.endswith("16")}
    rows = [f"| graph | {' | '.join(halves)} |", f"|---|{'---|' * len(halves)}"]
    keys = {(graph, variant) for graphs in halves.values() for graph in graphs for variant in graphs[graph]}
    for graph, variant in sorted(keys, key=lambda key: (GRAPHS.index(key[0]), key[1])):
        what = f"`{graph}`" if variant == "as exported" else f"`{graph}`, {variant}"
        cells = [_fused(graphs.get(graph, {}).get(variant)) for graphs in halves.values()]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _fused(built: dict[str, Any] | None) -> str:
    if built is None:
        return "–"
    counted = f"{built['fused']} of {built['attentions']}; {built['activation_bytes'] / 1e6:.0f} MB"
    reasons = {reason for each in built["unfused"].values() for reason in each or [OWN_CHOICE]}
    if IN_FLOAT32 in reasons:  # it hides all other reasons
        reasons = {IN_FLOAT32}
    # The name of an output is that of the softmax, which is long.
    shown = {
        each.split(" are the output ")[0] + " are outputs" if " output " in each else each for each in reasons
    }
    return f"{counted}; {', '.join(sorted(shown))}" if shown else counted


def encoder_table(record: dict[str, Any]) -> str:
    """Return two rows per SAM: its encoder as segment_anything writes it, and as it is exported."""
    rows = [
        "| encoder | as written by | fused, fp16 | activations, fp16 | on a CPU, fp32 | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for model, entry in record.items():
        for form, plan in entry["plans"].items():
            seconds = entry["median_seconds"][form]
            apart = f"{entry['largest_difference_over_range']:.0e}" if form == "refdiff" else ""
            rows.append(
                f"| `{model}` | {form} | {plan['fused']} of {plan['attentions']} "
                f"| {plan['activation_bytes'] / 1e6:.0f} MB | {seconds:.1f} s | {apart} |"
            )
    return "\n".join(rows)
