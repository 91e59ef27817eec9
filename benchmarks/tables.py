"""Write the tables of the documents from the records in results/: `python -m benchmarks.tables`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.edge_variants import IN_EDGE, NOT_IN_EDGE
from refdiff.contracts.graphs import GRAPHS
from refdiff.engines.memory_plan import HOLDINGS, EngineSize, peak_bytes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "gen": "torch, `gen`",
    "gen, between-class": "torch, `gen`, second selector",
    "gen+seg": "torch, `gen+seg`",
    "disc+seg": "torch, `disc+seg`",
    "full": "torch, `full`",
    "runtime": "ONNX Runtime, `full`",
}


def main() -> None:
    """Replace the text between the markers of each document whose record exists."""
    for document, marker, record, table in (
        ("README.md", "accuracy", "miniature-accuracy", accuracy_table),
        ("src/refdiff/miniature/MODEL_CARD.md", "mini-edge", "mini-edge", mini_edge_table),
        ("docs/camera.md", "camera-tracking", "camera-tracking", camera_tracking_table),
        ("docs/camera.md", "camera-rate", "camera-rate", camera_rate_table),
        ("docs/serving.md", "serve-load", "serve-load", serve_load_table),
        ("docs/confidence.md", "confidence", "confidence", confidence_table),
        ("docs/exporting.md", "exports", "full-size-export", exports_table),
        ("docs/exporting.md", "pipeline", "full-size-pipeline", pipeline_table),
        ("docs/exporting.md", "early-exit", "early-exit", early_exit_table),
        ("docs/models.md", "formats", "checkpoint-formats", formats_table),
        ("docs/precision.md", "fp32-regions", "attention-regions", regions_table),
        ("docs/precision.md", "precision", "miniature-precision", precision_table),
        ("docs/precision.md", "precision-fresh", "miniature-precision-fresh", precision_table),
        ("docs/precision.md", "precision-mini-edge", "mini-edge-precision", precision_table),
        ("docs/precision.md", "cuda", "miniature-precision-cuda", cuda_table),
        ("docs/engines.md", "gpu", "gpu", gpu_table),
        ("docs/engines.md", "fusion", "fusion", fusion_table),
        ("docs/engines.md", "sam-encoder", "sam-encoder", encoder_table),
        ("docs/jetson.md", "memory", "rtx-builds", memory_table),
        ("docs/precision.md", "conversions", "full-size-precision", conversions_table),
        ("docs/precision.md", "builds", "rtx-builds", builds_table),
        ("docs/speed.md", "bench", "bench", bench_table),
        ("docs/speed.md", "start", "bench", start_line),
        ("docs/speed.md", "sam-decoder", "sam-decoder", decoder_table),
        ("docs/speed.md", "growth", "growth", growth_table),
        (
            "docs/decisions/0005-which-substitutes-edge-takes.md",
            "profiles",
            "edge-substitutes",
            profiles_table,
        ),
        (
            "docs/decisions/0005-which-substitutes-edge-takes.md",
            "edge",
            "edge-substitutes",
            substitutes_table,
        ),
        ("docs/decisions/0007-better-maps.md", "maps", "maps", maps_table),
        ("docs/decisions/0008-small-models.md", "small-models", "small-models", small_models_table),
        ("docs/decisions/0007-better-maps.md", "negatives", "negative-points", negatives_table),
    ):
        path = RESULTS / f"{record}.json"
        if path.exists():
            fill(document, marker, table(json.loads(path.read_text(encoding="utf-8"))))


def fill(document: str, name: str, table: str) -> None:
    """Put a table between the markers of its name."""
    path = ROOT / document
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = path.read_text(encoding="utf-8").split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{table}\n{end}{tail}", encoding="utf-8")


def camera_rate_table(record: dict[str, Any]) -> str:
    """Return one row per run whose times were recorded; then the memory of the long run."""
    rows = [
        "| run | frames/s in, out | key frames/s | capture to consumer, p50, p99, ms | mask age, p50, ms |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for name, entry in record.items():
        if "fps" not in entry:
            sizes = ", ".join(f"{each:.0f}" for each in entry["memory"]["every_tenth_of_the_time_mb"])
            notes.append(
                f"Resident memory, {name}: {sizes} MB at each tenth of the time, at most"
                f" {entry['memory']['most_mb']:.0f} MB; a line through all values grows by"
                f" {entry['memory']['slope_mb_per_minute']:.1f} MB a minute."
            )
            continue
        fps, delay = entry["fps"], entry["capture_to_consumer_ms"]
        cells = [
            f"{fps['in']:.1f}, {fps['out']:.1f}",
            f"{fps['key']:.1f}",
            f"{delay['p50']:.0f}, {delay['p99']:.0f}",
            f"{entry['delays_ms']['mask_age']['p50']:.0f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *notes])


def serve_load_table(record: dict[str, Any]) -> str:
    """Return one row per number of clients."""
    rows = [
        "| bundle | clients | answers/s | p50, p99, ms | refused with 429 "
        "| resident memory, MB, start and end |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for many, load in entry["clients"].items():
            cells = [
                f"{load['per_second']:.1f}",
                f"{load['p50_ms']:.0f}, {load['p99_ms']:.0f}",
                str(load["refused_429"]),
                f"{load['resident_mb'][0]:.0f}, {load['resident_mb'][-1]:.0f}",
            ]
            rows.append(f"| `{name}` | {many} | {' | '.join(cells)} |")
        rows.append("")
        rows.append(
            f"`{name}`: engines with one thread, every image new, a cache of {entry['cache_mb']} MB,"
            f" {entry['seconds']:g} s for each row. The"
            f" pipeline alone takes {entry['pipeline_ms']:.0f} ms for such a question; one client waits"
            f" {100 * entry['overhead_of_one_client']:.0f} % longer."
        )
    return "\n".join(rows)


def camera_tracking_table(record: dict[str, Any]) -> str:
    """Return one row per delay and method, of moderate motion."""
    entry = record["moderate motion"]
    lines = [
        f"Moving rendered scenes of 640x480 px, objects of 2 to 4 px a frame, {entry['clips']} clips of "
        f"{entry['frames_per_clip']} frames that nothing was tuned on; key frames of the miniature, answered "
        "late. IoU of all frames with a visible target once a key frame since the last cut has been "
        "answered, 0 where there is no mask:",
        "",
        "| key frames answered after | masks | IoU | of the key frames' IoU | IoU where there is a mask "
        "| frames on another object | of these seen or tracked | frames without a mask |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for delay, methods in entry["delays_s"].items():
        for name, row in methods.items():
            counts = row["counts"]
            frames = counts["frames"]
            follows = name.startswith("points")
            masked = counts.get("state lost", 0) + counts.get("state searching", 0)
            trusted = counts.get("wrong target, seen or tracked", 0)
            cells = [
                f"{delay} s",
                name,
                f"{row['iou']:.3f}",
                f"{row['of_key_frames']:.0%}",
                f"{row['iou_with_mask']:.3f}",
                f"{counts.get('wrong target', 0)} of {frames}",
                str(trusted) if follows else "",
                f"{masked} of {frames}" if follows else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mini_edge_table(record: dict[str, Any]) -> str:
    """Return one row per mixture of the two miniatures."""
    times = record.get("time", {}).get("mixtures", {})
    rows = [
        "| small parts | mIoU | oIoU | points lost (standard error) | best candidate "
        "| mIoU, `official` | points lost, `official` | ms, one thread | times faster |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record["edge"]["mixtures"].items():
        time, official = times.get(name), record["official"]["mixtures"][name]
        cells = [
            f"{entry['miou']:.3f}",
            f"{entry['oiou']:.3f}",
            _lost(name, entry),
            f"{entry['oracle_miou']:.3f}",
            f"{official['miou']:.3f}",
            _lost(name, official),
            *(("", "") if time is None else (f"{time['ms']['p50']:.0f}", f"{time['faster_than_none']:.2f}")),
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    scenes, seed = (record["edge"][key] for key in ("scenes", "seed"))
    rows.append(f"\n{scenes} scenes from seed {seed}; variant `edge` where no other is named.")
    return "\n".join(rows)


def _lost(name: str, entry: dict[str, Any]) -> str:
    lost = entry["against_none"]
    return "" if name == "none" else f"{-lost['points']:.1f} ({lost['standard_error']:.1f})"


def confidence_table(record: dict[str, Any]) -> str:
    """Return one row per variant, with the plain score's figures in brackets."""
    kinds = ("kind", "colour", "place")
    rows = [
        "| model, variant | true phrases right | against absent kind | against other color "
        "| against false place | all | calibration error | coverage at 95 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        against = [entry["against"][f"scenes, no such {kind}"] for kind in kinds]
        cells = [
            f"{entry['true']['right']:.1%} of {entry['true']['samples']}",
            *(f"{each['auroc']:.3f} ({each['auroc_of_score']:.3f})" for each in against),
            f"{entry['auroc']:.3f} ({entry['auroc_of_score']:.3f})",
            f"{entry['calibration_error']:.3f}",
            f"{entry['coverage_at_95']:.1%} ({entry['coverage_of_score_at_95']:.1%})",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows.append("\nIn brackets: the same of the plain score.")
    return "\n".join(rows)


def exports_table(record: dict[str, Any]) -> str:
    """Return one row per export."""
    rows = [
        "| model, px | seconds | peak memory | private part | written | largest error | taps' correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        outputs = [output for graph in entry["parity"].values() for output in graph.values()]
        taps = min(entry["parity"][graph]["taps"]["correlation"] for graph in ("unet", "unet_taps"))
        cells = [
            f"{entry['seconds']:.0f}",
            *(_gigabytes(entry[key]) for key in ("peak_rss_bytes", "peak_private_bytes", "written_bytes")),
            f"{max(output['error'] for output in outputs):.1e}",
            f"{taps:.9f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def pipeline_table(record: dict[str, Any]) -> str:
    """Return one row per image."""
    rows = [
        "| bundle, px, image | candidates torch / runtime | smallest IoU, in order "
        "| largest score difference | same choice | seconds torch / runtime |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        found, chosen = entry["candidates"], entry["chosen"]
        cells = [
            f"{found['reference']} / {found['runtime']}",
            f"{entry['smallest_iou_in_order']:.6f}",
            f"{entry['largest_score_difference']:.1e}",
            "yes" if chosen["reference"] == chosen["runtime"] else "no",
            f"{entry['reference_seconds']:.0f} / {entry['runtime_seconds']:.0f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def early_exit_table(record: dict[str, Any]) -> str:
    """Return one row per bundle."""
    rows = ["| bundle, px | | `unet` | `unet_taps` | ratio |", "|---|---|---|---|---|"]
    for name, entry in record.items():
        counts, seconds = entry["multiply_adds_per_picture"], entry["median_seconds"]
        billions = [f"{counts[graph] / 1e9:.1f} G" for graph in ("unet", "unet_taps")]
        times = [f"{seconds[graph]:.2f} s" for graph in ("unet", "unet_taps")]
        rows.append(
            f"| `{name}` | multiply-adds per image | {' | '.join(billions)} "
            f"| {entry['multiply_adds_ratio']:.3f} |"
        )
        rows.append(f"| | median time, batch 2 | {' | '.join(times)} | {entry['time_ratio']:.3f} |")
    return "\n".join(rows)


def formats_table(record: dict[str, Any]) -> str:
    """Return one row per format."""
    rows = [
        "| layout | size | bit-identical tensors | bit-identical forward pass | largest difference "
        "| open, s | load, s | private memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        counted = f"{entry['equal_tensors']} of {entry['tensors']}" if "tensors" in entry else "renamed"
        cells = [
            _gigabytes(entry["written_bytes"]),
            counted,
            "yes" if entry["forward_equal"] else "no",
            f"{entry['largest_forward_difference']:.1e}" if entry["largest_forward_difference"] else "0",
            f"{entry['seconds_to_describe']:.1f}",
            f"{entry['seconds_to_load']:.1f}",
            _gigabytes(entry["peak_private_growth_bytes"]),
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


LARGE_MODELS = {
    "vae_encoder": "kl",
    "unet_taps": "sd15",
    "sam_encoder": "vit_b",
    "clip_image": "vit_b_16",
}
"""Graph -> the architecture that the others are compared with."""


def small_models_table(record: dict[str, Any]) -> str:
    """Return one row per graph and architecture, the largest of each graph first."""
    rows = [
        "| graph | architecture | multiply-adds | of the large model's | weights, millions | maps |",
        "|---|---|---|---|---|---|",
    ]
    for graph, large in LARGE_MODELS.items():
        entries = {name: entry for name, entry in record.items() if entry["graph"] == graph}
        base = next(
            entry["multiply_adds"]
            for entry in entries.values()
            if large in entry["parts"].values() and entry["parts"].get("taps", "all") == "all"
        )
        for entry in sorted(entries.values(), key=lambda each: -each["multiply_adds"]):
            title = ", taps ".join(f"`{part}`" for part in entry["parts"].values())
            macs, weights = entry["multiply_adds"], entry["weights"]
            rows.append(
                f"| `{graph}` | {title} | {macs / 1e9:.1f} G | {macs / base:.2f} | {weights / 1e6:.1f} "
                f"| {entry['maps'] or ''} |"
            )
    return "\n".join(rows)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def accuracy_table(record: dict[str, Any]) -> str:
    """Return one row per back-end and mode, columns by variant."""
    rows = ["| computed by | `official` mIoU | oIoU | `edge` mIoU | oIoU |", "|---|---|---|---|---|"]
    by_variant = record["profiles"]
    for key, name in NAMES.items():
        cells = [
            f"{by_variant[variant]['modes'][key][metric]:.3f}"
            for variant in ("official", "edge")
            for metric in ("miou", "oiou")
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    path = RESULTS / "mini-edge.json"
    small = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if small:
        cells = [
            f"{small[variant]['mixtures']['all'][metric]:.3f}" if variant in small else ""
            for variant in ("official", "edge")
            for metric in ("miou", "oiou")
        ]
        rows.append(f"| ONNX Runtime, `full`, `mini-edge` | {' | '.join(cells)} |")
    oracle = [
        f"{by_variant[variant]['modes']['full']['oracle_miou']:.3f}" for variant in ("official", "edge")
    ]
    rows.append(f"| best candidate (oracle) | {oracle[0]} | | {oracle[1]} | |")
    agreements = [by_variant[variant]["agreement"] for variant in ("official", "edge")]
    agreed = [f"{each['argmax_agreement']:.3f}" for each in agreements]
    masks = [f"{each['mask_iou']:.4f}" for each in agreements]
    return "\n".join(rows) + (
        f"\n\n{record['scenes']} scenes from seed {record['seed']}. Runtime against reference: the same"
        f" candidate is chosen on {agreed[0]} (`official`) and {agreed[1]} (`edge`) of them; the mean IoU"
        f" of the two masks is {masks[0]} and {masks[1]}."
    )


SHOWN = ("fp32", "fp16", "bf16", "int8", "fp8")


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


_SIZES = ("peak_private_bytes", "peak_rss_bytes", "written_bytes")


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


FULL_SIZE = ("refdiff-edge 512", "refdiff-vitb 512", "refdiff 512")
"""Prefixes of the entries of full-size bundles."""


OWN_CHOICE = "TensorRT's own choice"
IN_FLOAT32 = "products in float32"


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


def decoder_table(record: dict[str, Any]) -> str:
    """Return one row per SAM."""
    rows = [
        "| decoder | original, one graph | `sam_decoder` | `sam_masks` | speed-up | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    graphs = ("one_graph", "sam_decoder", "sam_masks")
    for name in ("mini", "full"):
        entry = record[name]
        seconds, counts = entry["median_seconds"], entry["multiply_adds"]
        cells = [f"{1e3 * seconds[graph]:.0f} ms, {counts[graph] / 1e9:.2f} G" for graph in graphs]
        difference = max(entry["largest_difference_over_range"].values())
        rows.append(f"| `{name}` | {' | '.join(cells)} | {entry['speed_up']:.2f} | {difference:.0e} |")
    drawn, prompts = record["full"]["drawn"], record["full"]["prompts"]
    return "\n".join(rows) + (
        f"\n\n{prompts} prompts, masks of {drawn} of them; processor time of one thread, and multiply-adds."
        " Differences are over the output's range. `full` is the decoder of all original SAMs, with random"
        " weights."
    )


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


CHOOSING, HELD_OUT = 3_000_000, 1_000_000
TORCH = "torch reference, official"


def profiles_table(record: dict[str, Any]) -> str:
    """Return one row per variant."""
    cost = record[f"cost from seed {CHOOSING}"]["variants"]
    rows = [
        "| | mIoU, choosing scenes | mIoU, held-out scenes | points over `official`, held out "
        "| time over torch | image and phrase | further phrase |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("official", "edge"):
        chosen, held = (
            record[f"accuracy from seed {seed}"]["variants"][name] for seed in (CHOOSING, HELD_OUT)
        )
        times = cost[name]
        cells = [
            f"{chosen['miou']:.3f}",
            f"{held['miou']:.3f}",
            _points(held, "official"),
            f"1/{1 / times['time_over'][TORCH]:.1f}",
            f"{times['ms']['p50']:.0f} ms",
            f"{times['further_phrase_ms']['p50']:.0f} ms",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows) + f"\n\n{_origin(record)}"


def substitutes_table(record: dict[str, Any]) -> str:
    """Return one row per substitute: alone in `official`, and taken out of or added to `edge`."""
    rows = [
        "| substitute | `official` with it: points, choosing | held out | time "
        "| | `edge`: points, choosing | held out | time | further phrase |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for names, sign, how in ((IN_EDGE, "-", "without it"), (NOT_IN_EDGE, "+", "with it")):
        for name in names:
            alone = _cells(record, f"official + {name}", "official")
            together = _cells(record, f"edge {sign} {name}", "edge")
            rows.append(f"| {name} | {' | '.join(alone[:3])} | {how} | {' | '.join(together)} |")
    return "\n".join(rows)


def negatives_table(record: dict[str, Any]) -> str:
    """Return one row per number of negative points: accuracy, and points against the same prompts without."""
    lines = [
        "| `edge`, prompts | mIoU | oIoU | points | oracle mIoU |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {each['miou']:.3f} | {each['oiou']:.3f} "
            f"| {each['points']:+.2f} ± {each['standard_error']:.2f} | {each['oracle_miou']:.3f} |"
            for name, each in record["edge"]["prompts"].items()
        ),
        "",
        f"{record['edge']['scenes']} scenes from seed {record['edge']['seed']}. Points of mIoU ± their "
        "standard error over the scenes, against the first row.",
    ]
    return "\n".join(lines)


def maps_table(record: dict[str, Any]) -> str:
    """Return one row per reading of each variant: accuracy, and points against the variant as it is."""
    rows = [
        "| variant | reading | contrast | `full`: mIoU | oIoU | points | `gen+seg`: mIoU | oIoU | points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, entry in record.items():
        for name, measured in entry["readings"].items():
            variant_name, _, bundle = variant.partition(", ")
            cells = [f"`{variant_name}` {bundle}".strip(), name, f"{measured['truth_contrast']:.3f}"]
            for mode in ("full", "gen+seg"):
                each = measured[mode]
                cells += [f"{each['miou']:.3f}", f"{each['oiou']:.3f}"]
                cells.append(f"{each['points']:+.2f} ± {each['standard_error']:.2f}")
            rows.append(f"| {' | '.join(cells)} |")
    seeds = "; ".join(f"`{name}`: {e['scenes']} scenes from seed {e['seed']}" for name, e in record.items())
    note = f"{seeds}. Points of mIoU ± their standard error over the scenes, against the variant as it is."
    costs = [entry["cost"] for entry in record.values() if "cost" in entry]
    if costs:
        plain, more = costs[0]["as shipped"], costs[0]["with more maps"]
        note += (
            f" With more maps, a row of the miniature's `unet_taps` takes {more['macs'] / 1e6:.0f} instead "
            f"of {plain['macs'] / 1e6:.0f} million multiply-adds, {more['cpu_ms_p50']:.1f} instead of "
            f"{plain['cpu_ms_p50']:.1f} ms on one thread, and {more['output_bytes'] / 1e6:.2f} instead of "
            f"{plain['output_bytes'] / 1e6:.2f} MB of outputs."
        )
    return "\n".join(rows) + f"\n\n{note}"


def _cells(record: dict[str, Any], variant: str, base: str) -> list[str]:
    """Return points on both sets of scenes, the time of an image and a phrase, and of a further phrase."""
    measured = [record[f"accuracy from seed {seed}"]["variants"][variant] for seed in (CHOOSING, HELD_OUT)]
    cost = record[f"cost from seed {CHOOSING}"]["variants"]
    further = cost[variant]["further_phrase_ms"]["p50"] / cost[base]["further_phrase_ms"]["p50"]
    times = (cost[variant]["time_over"][base], further)
    return [*(_points(each, base) for each in measured), *(f"{time:.2f}x" for time in times)]


def _points(measured: dict[str, Any], base: str) -> str:
    against = measured["against"][base]
    return f"{against['points']:+.2f} ± {against['standard_error']:.2f}"


def _origin(record: dict[str, Any]) -> str:
    counts = [record[f"accuracy from seed {seed}"]["scenes"] for seed in (CHOOSING, HELD_OUT)]
    return (
        f"Choosing: {counts[0]} scenes from seed {CHOOSING}; held out: {counts[1]} from {HELD_OUT}. Points"
        " of mIoU ± their standard error over the scenes, which are the same for both. Times: median over"
        f" {record[f'cost from seed {CHOOSING}']['scenes']} scenes of the ratio within a scene, one thread,"
        " all variants in turns."
    )


def growth_table(record: dict[str, Any]) -> str:
    """Return one row per curve and entry, its points in one cell each; then the lines fitted over phrases."""
    rows = [
        "| bundle, px, series | curve | processor seconds (wall clock) | peak memory, MB (private part) |",
        "|---|---|---|---|",
    ]
    for name, entry in record.items():
        for curve, measured in entry["curves"].items():
            times = [
                f"{row['label']}: {row['cpu_seconds']['median']:.2f} ({row['seconds']['median']:.2f})"
                for row in measured["points"]
            ]
            peaks = [
                f"{row['label']}: {row['peak_rss_bytes'] / 1e6:.0f} ({row['peak_private_bytes'] / 1e6:.0f})"
                for row in measured["points"]
            ]
            cells = ["<br>".join(times), "<br>".join(peaks)]
            rows.append(f"| `{name}` | {curve} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n\n" + fits_table(record)


def fits_table(record: dict[str, Any]) -> str:
    """Return the line fitted to each curve over phrases, in processor time; shares by wall clock too."""
    rows = [
        "| bundle, px, series | curve | image, s | each phrase, s "
        "| share of the first phrase's total (wall clock) | largest distance from the line |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        for curve, measured in entry["curves"].items():
            if "fit" in measured:
                fit, wall = (measured["fit"][clock] for clock in ("cpu_seconds", "seconds"))
                cells = [
                    f"{fit['intercept']:.3f}",
                    f"{fit['slope']:.4f}",
                    f"{fit['slope_over_first']:.3f} ({wall['slope_over_first']:.3f})",
                    f"{fit['largest_relative_residual']:.1%}",
                ]
                rows.append(f"| `{name}` | {curve} | {' | '.join(cells)} |")
    return "\n".join(rows)


_SHOWN = 5
"""Number of graphs that a row names."""


def bench_table(record: dict[str, Any]) -> str:
    """Return one row per bundle and variant."""
    rows = [
        "| bundle, px | computed by | seconds | speed-up over the original | outside the graphs "
        "| slowest graphs |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        rows.append(f"| `{name}` | torch, as released | {_seconds(entry['seconds']['reference'])} | | | |")
        for variant, ratio in entry["reference_over"].items():
            cells = [
                _seconds(entry["seconds"][variant]),
                f"{ratio:.2f}",
                f"{100 * entry['share_outside_graphs'][variant]:.1f} %",
                _graphs([turn[variant] for turn in entry["turns"]]),
            ]
            rows.append(f"| `{name}` | runtime, `{variant}` | {' | '.join(cells)} |")
        many = entry["many"]
        cells = [
            f"{_seconds(many['seconds'] / many['phrases'])} per phrase",
            f"{many['reference_over_official_per_phrase']:.1f} per phrase",
            f"{100 * (1 - many['graph_seconds'] / many['seconds']):.1f} %",
            _graphs([many]),
        ]
        rows.append(f"| `{name}` | runtime, `official`, {many['phrases']} phrases | {' | '.join(cells)} |")
    threads = {entry["threads"] for entry in record.values()}
    return "\n".join(rows) + (
        f"\n\n{' or '.join(map(str, sorted(threads)))} threads, all contenders in turns in one run; ratios"
        " are taken within a turn, and the medians of all turns are shown."
    )


def start_line(record: dict[str, Any]) -> str:
    """Return the start-up cost of the miniature."""
    start = record["mini 128"]["start"]
    return (
        f"`import refdiff` takes {start['import_s']:.2f} s, loading the miniature {start['load_s']:.2f} s; a"
        " process that answers one phrase on an image of 1280 × 720 px with `edge` takes"
        f" {start['peak_resident_mb_720p_edge']:.0f} MB of memory at most, including the bundle's files with"
        f" {start['weights_mb']:.0f} MB."
    )


def _graphs(answers: list[dict[str, Any]]) -> str:
    """Return the slowest graphs with their share of the time."""
    total = sum(answer["seconds"] for answer in answers)
    graphs: dict[str, float] = {}
    for answer in answers:
        for graph, seconds in answer["seconds_by_graph"].items():
            graphs[graph] = graphs.get(graph, 0.0) + seconds
    slowest = sorted(graphs.items(), key=lambda item: -item[1])[:_SHOWN]
    return ", ".join(f"{graph} {100 * seconds / total:.0f} %" for graph, seconds in slowest)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
