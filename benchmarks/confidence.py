"""Judge the confidence of a bundle on rendered scenes that no fit has seen.

    .venv/bin/python -m benchmarks.confidence --variant edge --scenes 600

Each scene has up to two true phrases and three that fit nothing in it: an absent kind, another color, a
false place or relation. AUROC is the probability that a right answer has a higher confidence than an answer
to a false phrase; coverage is the largest share of the right answers at 95 % precision. The plain score
stands next to each figure. Adds an entry to results/confidence.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, add_entry
from refdiff.accuracy.logistic import auroc, calibration_error, coverage
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.data.folder import image_sample
from refdiff.data.synthetic import HELD_OUT_FROM, ScenesWithFalsehoods
from refdiff.evaluation.evaluate import evaluate
from refdiff.evaluation.records import SentenceRecord
from refdiff.loading import load

RECORD = RESULTS / "confidence.json"
TRUE = "scenes, true"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="mini")
    parser.add_argument("--variant", choices=("official", "edge"), default="edge")
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=HELD_OUT_FROM)
    parser.add_argument("--photos", type=Path, help="folder of photographs, which must get no confidence")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    options, backend = RunOptions(variant=given.variant), BackendOptions(threads=given.threads)
    scenes = ScenesWithFalsehoods(count=given.scenes, seed=given.seed)
    report = evaluate(given.bundle, scenes, options=options, backend=backend, progress=print)
    entry = {"scenes": given.scenes, "seed": given.seed, **figures(report.records)}
    if given.photos is not None:
        entry["photos"] = photos(given.bundle, given.photos, options, backend)
    spec = find_bundle(given.bundle).spec
    add_entry(RECORD, f"{spec.name} {spec.diffusion.image_size} {given.variant}", entry)


def figures(records: Sequence[SentenceRecord]) -> dict[str, Any]:
    """Return AUROC by kind of false phrase, calibration error and coverage, of answers with a mask."""
    answered = [each for each in records if each.matched and each.score is not None]
    known = [each for each in answered if each.confidence is not None]
    confidence = np.array([each.confidence for each in known], dtype=np.float64)
    score = np.array([each.score for each in known], dtype=np.float64)
    right = np.array([each.has_target and each.iou >= 0.5 for each in known])
    subset = np.array([each.subset for each in known])
    against = {}
    for name in sorted(set(subset.tolist()) - {TRUE}):
        chosen = right | (subset == name)
        against[name] = {
            "samples": int((subset == name).sum()),
            "auroc": auroc(confidence[chosen], right[chosen]),
            "auroc_of_score": auroc(score[chosen], right[chosen]),
        }
    true = subset == TRUE
    return {
        "answers": len(answered),
        "without_confidence": len(answered) - len(known),
        "true": {
            "samples": int(true.sum()),
            "right": float(right[true].mean()),
            "auroc_right_or_wrong": auroc(confidence[true], right[true]),
        },
        "against": against,
        "auroc": auroc(confidence, right),
        "auroc_of_score": auroc(score, right),
        "calibration_error": calibration_error(confidence, right),
        "coverage_at_95": coverage(confidence, right, precision=0.95),
        "coverage_of_score_at_95": coverage(score, right, precision=0.95),
    }


def photos(bundle: str, folder: Path, options: RunOptions, backend: BackendOptions) -> dict[str, Any]:
    """Return the confidence of an answer on each photograph; None is what is wanted of the miniature."""
    with load(bundle, options=options, backend=backend) as segmenter:
        answers = {
            path.name: segmenter.segment(image_sample(path, "the dog").fetch(), "the dog")
            for path in sorted(folder.glob("*.jpg"))
        }
    return {
        name: {"confidence": each.confidence, "cautions": list(each.cautions)}
        for name, each in answers.items()
    }


if __name__ == "__main__":
    main()
