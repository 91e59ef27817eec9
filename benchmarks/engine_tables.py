"""Tables of docs/engines.md and docs/jetson.md from the records of built plans."""

from __future__ import annotations

from typing import Any

from refdiff.contracts.graphs import GRAPHS
from refdiff.engines.memory_plan import HOLDINGS, EngineSize, peak_bytes

FULL_SIZE = ("refdiff-vitb 512", "refdiff 512")
"""Starts of the records' entries that are of real sizes."""


OWN_CHOICE = "TensorRT's own choice"
IN_FLOAT32 = "products in float32"


def fusion_table(record: dict[str, Any]) -> str:
    """One row per graph, and per way to build the UNet; a column per bundle in half precision."""
    halves = {name: entry["graphs"] for name, entry in record.items() if name.endswith("16")}
    rows = [f"| graph | {' | '.join(halves)} |", f"|---|{'---|' * len(halves)}"]
    keys = {(graph, variant) for graphs in halves.values() for graph in graphs for variant in graphs[graph]}
    for graph, variant in sorted(keys, key=lambda key: (GRAPHS.index(key[0]), key[1])):
        what = f"`{graph}`" if variant == "as exported" else f"`{graph}`, {variant}"
        cells = [_fused(graphs.get(graph, {}).get(variant)) for graphs in halves.values()]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(rows)


def decoder_table(record: dict[str, Any]) -> str:
    """One row per SAM."""
    rows = [
        "| decoder | original, one graph | `sam_decoder` | `sam_masks` | faster by | largest difference |",
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
        " Differences are over the output's range. `full` is the decoder of all original SAMs, weights drawn."
    )


def _fused(built: dict[str, Any] | None) -> str:
    if built is None:
        return "–"
    counted = f"{built['fused']} of {built['attentions']}; {built['activation_bytes'] / 1e6:.0f} MB"
    reasons = {reason for each in built["unfused"].values() for reason in each or [OWN_CHOICE]}
    if IN_FLOAT32 in reasons:  # whatever else there is, it comes first
        reasons = {IN_FLOAT32}
    # An output's name is the softmax's own, and as long.
    told = {
        each.split(" are the output ")[0] + " are outputs" if " output " in each else each for each in reasons
    }
    return f"{counted}; {', '.join(sorted(told))}" if told else counted


def memory_table(record: dict[str, Any]) -> str:
    """One row per whole bundle of real size: what its plans take on the device, held in each way."""
    rows = [f"| bundle, px | plans | {' | '.join(HOLDINGS)} |", f"|---|---|{'---|' * len(HOLDINGS)}"]
    for name, entry in record.items():
        if not name.startswith(FULL_SIZE) or "unet" not in entry["graphs"]:
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
    """Two rows per SAM: its encoder as segment_anything has it, and as it is exported."""
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
