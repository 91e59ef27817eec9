"""The tables of docs/decisions/0005."""

from __future__ import annotations

from typing import Any

from edge_variants import IN_EDGE, NOT_IN_EDGE

CHOOSING, HELD_OUT = 3_000_000, 1_000_000
TORCH = "torch reference, official"


def profiles_table(record: dict[str, Any]) -> str:
    """The two profiles."""
    cost = record[f"cost from seed {CHOOSING}"]["variants"]
    rows = [
        "| | mIoU, choosing scenes | mIoU, held-out scenes | points over `official`, held out "
        "| time over torch | picture and phrase | a further phrase |",
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
    """One row per substitute: alone in `official`, and taken out of or added to `edge`."""
    rows = [
        "| substitute | `official` with it: points, choosing | held out | time "
        "| | `edge`: points, choosing | held out | time | a further phrase |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for names, sign, how in ((IN_EDGE, "-", "without it"), (NOT_IN_EDGE, "+", "with it")):
        for name in names:
            alone = _cells(record, f"official + {name}", "official")
            together = _cells(record, f"edge {sign} {name}", "edge")
            rows.append(f"| {name} | {' | '.join(alone[:3])} | {how} | {' | '.join(together)} |")
    return "\n".join(rows)


def _cells(record: dict[str, Any], variant: str, base: str) -> list[str]:
    """Points on both sets of scenes, time for a picture and a phrase, and that of a further phrase."""
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
