"""The whole `official` pipeline at full size on a photograph: torch against the runtime, on the same weights.

    .venv/bin/python -m benchmarks.full_size_pipeline BUNDLE PHOTO "the left wheel"

BUNDLE is one that `refdiff export MODEL --random-weights` wrote; torch draws the same weights again. Random
weights make random predicted IoUs and stabilities, so SAM's two thresholds are set, before either side runs,
to keep a given share of the prompts' masks. Such masks are many and small: --min-area, which the release sets
to 10,000 px for RefCOCO, keeps slivers of a few pixels from CLIP.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.records import RESULTS, add_entry
from refdiff.accuracy.metrics import pairwise_iou
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.graphs import POINTS_PER_BATCH, POINTS_PER_DRAWING
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.parity import correlation
from refdiff.contracts.session import SessionFactory
from refdiff.contracts.stack import COMPONENTS
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of
from refdiff.models.choice import ModelChoice, load_choice
from refdiff.reference.pipeline import Reference
from refdiff.runtime.image import read_image
from refdiff.runtime.masks import cut_areas, stability
from refdiff.runtime.point_prompts import grid_points
from refdiff.runtime.prompt import point_tokens
from refdiff.runtime.proposals import to_sam_pixels
from refdiff.runtime.resize import sam_input
from refdiff.runtime.segmentation import Segmentation

RECORD = RESULTS / "full-size-pipeline.json"
STABLE_SHARE = 0.5
"""Share of the masks that pass the predicted IoU."""


def main() -> None:
    """Run both, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("phrase")
    parser.add_argument("--keep-share", type=float, default=0.4, help="of masks, by predicted IoU")
    parser.add_argument("--min-area", type=int, default=300, help="px, of masks that may win")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bundle, image = open_bundle(given.bundle), read_image(given.photo)
    # In a child: the back-end's memory is gone before torch takes its own.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
        options, runtime, runtime_s = child.submit(ask_runtime, given).result()

    stack = load_choice(choice_of(bundle), "the comparison")
    _ = [getattr(stack, name) for name in COMPONENTS]  # drawn before the clock starts
    started = time.perf_counter()
    reference = Reference(stack=stack, options=options).segment(image, given.phrase)
    reference_s = time.perf_counter() - started

    entry = {
        "photo": {
            "name": given.photo.name,
            "sha256": hashlib.sha256(given.photo.read_bytes()).hexdigest(),
            "size_yx": list(image.shape[:2]),
        },
        "phrase": given.phrase,
        "options": dataclasses.asdict(options),
        "threads": given.threads,
        "reference_seconds": round(reference_s, 1),
        "runtime_seconds": round(runtime_s, 1),
        **comparison(reference, runtime),
    }
    add_entry(RECORD, f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {given.photo.stem}", entry)


def ask_runtime(given: argparse.Namespace) -> tuple[Options, Segmentation, float]:
    """Return the runtime's answer, with the given thresholds, and its time in seconds."""
    bundle, image = open_bundle(given.bundle, verify="size"), read_image(given.photo)
    sessions = open_sessions(bundle, backend="ort-cpu", threads=given.threads)
    options = thresholds(bundle, sessions, image, given.keep_share, given.min_area)
    started = time.perf_counter()
    with segmenter_of(bundle, sessions, options) as segmenter:
        runtime = segmenter.segment(segmenter.encode(image), given.phrase)
    return options, runtime, time.perf_counter() - started


def choice_of(bundle: Bundle) -> ModelChoice:
    """Return the random model that the bundle was exported from."""
    seed = bundle.manifest.random_seed
    if seed is None:
        raise SystemExit(f"{bundle.path} has trained weights; this benchmark draws its own")
    return ModelChoice(
        name=bundle.spec.name, random_weights=True, seed=seed, size=bundle.spec.diffusion.image_size
    )


def thresholds(
    bundle: Bundle, sessions: SessionFactory, image: NDArray[np.uint8], keep_share: float, min_area_px: int
) -> Options:
    """Return `official` with thresholds in gaps between values, so that rounding flips no mask."""
    options, spec = options_for(bundle.spec, variant="official"), bundle.spec.sam
    pixels, resized_yx = sam_input(image, spec)
    embedding = sessions.open("sam_encoder").run({"image": pixels})["embedding"]
    points = to_sam_pixels(grid_points(options.proposals.points_per_side), resized_yx)
    tokens = point_tokens(bundle.prompt_vectors(), points)
    predicted, steady = [], []
    for start in range(0, len(points), POINTS_PER_BATCH):
        feeds = {"embedding": embedding, "prompts": tokens[start : start + POINTS_PER_BATCH]}
        decoded = sessions.open("sam_decoder").run(feeds)
        predicted.append(decoded.pop("iou").ravel())
        for first in range(0, POINTS_PER_BATCH, POINTS_PER_DRAWING):
            chosen = np.arange(first, first + POINTS_PER_DRAWING, dtype=np.int32)
            low_res = sessions.open("sam_masks").run({**decoded, "chosen": chosen})["low_res"]
            logits = low_res.reshape(-1, *low_res.shape[2:])
            steady.append(
                stability(cut_areas(logits, threshold=0.0, offset=options.proposals.stability_offset))
            )
    ious, stabilities = np.concatenate(predicted), np.concatenate(steady)
    iou_threshold = gap_at(ious, 1 - keep_share)
    proposals = dataclasses.replace(
        options.proposals,
        pred_iou_threshold=iou_threshold,
        stability_threshold=gap_at(stabilities[ious > iou_threshold], 1 - STABLE_SHARE),
        min_area_px=min_area_px,
    )
    return dataclasses.replace(options, proposals=proposals)


def gap_at(values: NDArray[np.floating], share: float) -> float:
    """Return a number above about this share of the values: the middle of the widest gap near that place."""
    ordered = np.sort(values.astype(np.float64))
    centre, reach = int(share * len(ordered)), max(1, len(ordered) // 50)
    low = max(0, centre - reach)
    near = ordered[low : centre + reach + 1]
    widest = int(np.argmax(np.diff(near)))
    return float((near[widest] + near[widest + 1]) / 2)


def comparison(reference: Segmentation, runtime: Segmentation) -> dict[str, Any]:
    """Candidates one to one and in order, scores, choice, map."""
    counts = len(reference.candidates), len(runtime.candidates)
    result: dict[str, Any] = {
        "candidates": {"reference": counts[0], "runtime": counts[1]},
        "kept": {
            "reference": int(reference.candidates.kept.sum()),
            "runtime": int(runtime.candidates.kept.sum()),
        },
        "chosen": {"reference": reference.index, "runtime": runtime.index},
        "heat_correlation": correlation(np.asarray(runtime.heat), np.asarray(reference.heat)),
    }
    if counts[0] == counts[1]:
        in_order = [
            float(pairwise_iou(one[None], other[None])[0, 0])
            for one, other in zip(reference.candidates.masks, runtime.candidates.masks, strict=True)
        ]
        scores = reference.scores.total, runtime.scores.total
        finite = np.isfinite(scores[0])
        result |= {
            "smallest_iou_in_order": min(in_order),
            "largest_predicted_iou_difference": float(
                np.abs(reference.candidates.predicted_iou - runtime.candidates.predicted_iou).max()
            ),
            "same_kept": bool((reference.candidates.kept == runtime.candidates.kept).all()),
            "same_finite_scores": bool((finite == np.isfinite(scores[1])).all()),
            "largest_score_difference": float(np.abs(scores[0][finite] - scores[1][finite]).max()),
            "score_range_of_kept": float(np.ptp(reference.scores.total[reference.candidates.kept])),
        }
    return result


if __name__ == "__main__":
    main()
