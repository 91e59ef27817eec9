"""Tables of accuracy: one row per variant, mode, mixture of models or reading of the maps."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.edge_variants import IN_EDGE, NOT_IN_EDGE
from benchmarks.records import RESULTS

NAMES = {
    "gen": "torch, `gen`",
    "gen, between-class": "torch, `gen`, second selector",
    "gen+seg": "torch, `gen+seg`",
    "disc+seg": "torch, `disc+seg`",
    "full": "torch, `full`",
    "runtime": "ONNX Runtime, `full`",
}
CHOOSING, HELD_OUT = 3_000_000, 1_000_000
TORCH = "torch reference, official"


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
