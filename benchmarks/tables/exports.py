"""Tables of models and exports: checkpoints, exported graphs, sizes of architectures, SAM's decoder."""

from __future__ import annotations

from typing import Any

LARGE_MODELS = {
    "vae_encoder": "kl",
    "unet_taps": "sd15",
    "sam_encoder": "vit_b",
    "clip_image": "vit_b_16",
}
"""Graph -> the architecture that the others are compared with."""


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


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


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
