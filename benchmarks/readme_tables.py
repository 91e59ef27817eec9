"""Write the README's tables from the records: `.venv/bin/python benchmarks/readme_tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NAMES = {
    "gen": "torch, `gen`",
    "gen, between-class": "torch, `gen`, second selector",
    "gen+seg": "torch, `gen+seg`",
    "disc+seg": "torch, `disc+seg`",
    "full": "torch, `full`",
    "runtime": "ONNX Runtime, `full`",
}


def main() -> None:
    """Replace what stands between the markers."""
    record = json.loads((ROOT / "benchmarks/results/miniature-accuracy.json").read_text())
    readme = ROOT / "README.md"
    text = readme.read_text()
    begin, end = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    readme.write_text(f"{head}{begin}\n{accuracy_table(record)}\n{end}{tail}")


def accuracy_table(record: dict[str, Any]) -> str:
    """One row per back-end and mode, columns by profile."""
    rows = ["| computed by | `official` mIoU | oIoU | `edge` mIoU | oIoU |", "|---|---|---|---|---|"]
    profiles = record["profiles"]
    for key, name in NAMES.items():
        cells = [
            f"{profiles[profile]['modes'][key][metric]:.3f}"
            for profile in ("official", "edge")
            for metric in ("miou", "oiou")
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    oracle = [f"{profiles[profile]['modes']['full']['oracle_miou']:.3f}" for profile in ("official", "edge")]
    rows.append(f"| best candidate (oracle) | {oracle[0]} | | {oracle[1]} | |")
    agreements = [profiles[profile]["agreement"] for profile in ("official", "edge")]
    agreed = [f"{each['argmax_agreement']:.3f}" for each in agreements]
    masks = [f"{each['mask_iou']:.4f}" for each in agreements]
    return "\n".join(rows) + (
        f"\n\n{record['scenes']} scenes from seed {record['seed']}. Runtime against reference: the same"
        f" candidate is chosen on {agreed[0]} (`official`) and {agreed[1]} (`edge`) of them; the two masks'"
        f" mean IoU is {masks[0]} and {masks[1]}."
    )


if __name__ == "__main__":
    main()
