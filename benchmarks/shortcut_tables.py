"""Tables of docs/speed.md's exact shortcuts."""

from __future__ import annotations

import math
from typing import Any

SAVES = {
    "skip_prompts": "masks are drawn only of prompts that pass the predicted-IoU filter",
    "filter_masks": "masks that fail it are not resized",
    "filter_candidates": "CLIP looks only at candidates that pass the area filter",
    "early_exit": "the last UNet pass stops at the last tap",
    "keep_unconditional": "the first pass without a phrase is kept for the picture",
    "keep_picture": "everything else that needs no phrase is kept for the picture",
    "keep_texts": "both text encoders' answers are kept",
    "batch_crops": "crops of one size share a call",
}


def shortcuts_table(record: dict[str, Any]) -> str:
    """One row per switch, columns by profile: how much slower without it."""
    profiles = [record[f"mini {name}"] for name in ("official", "edge")]
    phrases = profiles[0]["phrases"]
    rows = [
        f"| without | what it saves | `official`, one phrase | {phrases} phrases "
        f"| `edge`, one phrase | {phrases} phrases |",
        "|---|---|---|---|---|---|",
        _row("nothing", "", [_milliseconds(each, key) for each in profiles for key in ("first", "all")]),
    ]
    for switch, saves in SAVES.items():
        cells = [_factor(each, f"without {switch}", key) for each in profiles for key in ("first", "all")]
        rows.append(_row(f"`{switch}`", saves, cells))
    cells = [_factor(each, "none", key) for each in profiles for key in ("first", "all")]
    rows.append(_row("all of them", "", cells))
    scores = max(max(each["largest_score_difference"].values()) for each in profiles)
    outside = " and ".join(f"{100 * each['outside_the_graphs']:.1f} %" for each in profiles)
    same = f"every mask is the same to the pixel; the largest difference of a score is {scores:.1e}"
    agreement = "not every mask is the same" if math.isinf(scores) else same
    return "\n".join(rows) + (
        f"\n\nMedians of {profiles[0]['scenes']} scenes, processor time, one thread. Over all variants"
        f" {agreement}. Outside the graphs: {outside} of the first answer's time (`official`, `edge`)."
    )


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


def _row(name: str, saves: str, cells: list[str]) -> str:
    return f"| {name} | {saves} | {' | '.join(cells)} |"


def _milliseconds(entry: dict[str, Any], key: str) -> str:
    return f"{entry['milliseconds']['all'][key]:.0f} ms"


def _factor(entry: dict[str, Any], variant: str, key: str) -> str:
    times = entry["milliseconds"]
    return f"× {times[variant][key] / times['all'][key]:.2f}"
