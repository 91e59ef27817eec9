"""How good is the miniature on scenes it has never seen.

python -m refdiff.miniature.evaluate --count 500 --seed 1000000 --backend torch --variant edge --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refdiff.contracts.options import MODES, VARIANTS
from refdiff.data.synthetic import HELD_OUT_FROM
from refdiff.errors import RefdiffError
from refdiff.evaluation.evaluate import evaluate

if TYPE_CHECKING:
    from refdiff.evaluation.evaluate import EvaluationReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print.

    Returns:
        The exit code, by the rules of the command line.
    """
    given = _parser().parse_args(arguments)
    try:
        report = evaluate(
            count=given.count,
            seed=given.seed,
            mode=given.mode,
            backend=given.backend,
            variant=given.variant,
            bundle=given.bundle,
            jobs=given.jobs,
            progress=_tell,
        )
    except RefdiffError as error:
        if given.json:
            _say(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))
        _tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("error: interrupted")
        return 130
    _say(json.dumps(report.to_json(), allow_nan=False) if given.json else _text(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refdiff.miniature.evaluate",
        description="Measure the miniature on held-out scenes: one phrase each.",
    )
    parser.add_argument("--count", type=int, default=500, help="scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=HELD_OUT_FROM, help="of the first scene (%(default)s)")
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="edge")
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), default="onnx", help="reference or runtime (%(default)s)"
    )
    parser.add_argument("--bundle", default="mini", help="what the runtime runs (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _text(report: EvaluationReport) -> str:
    document = report.to_json()
    head = f"{document['backend']}, {document['variant']}, {document['mode']}: {document['count']} sentences"
    names = ("miou", "oiou", *(name for name in document if name.startswith("pr@")), "oracle_miou")
    lines = [f"{head}, {document['seconds']:.0f} s", *(f"  {name:12} {document[name]:.4f}" for name in names)]
    lines.append(f"  {'unmatched':12} {document['unmatched']}")
    for cue, part in document["by_cue"].items():
        lines.append(f"  with {cue:9} {part['miou']:.4f} mIoU over {part['count']}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
