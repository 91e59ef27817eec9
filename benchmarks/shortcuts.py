"""What each exact shortcut saves: the pipeline with all of them, without one at a time, and without any.

    .venv/bin/python benchmarks/shortcuts.py --scenes 6

The miniature on held-out scenes, in ONNX Runtime on one thread. All variants run in turns on the same
scene and phrases; their answers are compared. Times are of the process (user and system), so that a busy
machine shows in none of them more than in the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from records import RESULTS, add_entry

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import ALL_SHORTCUTS, Shortcuts, options_for
from refdiff.contracts.results import Segmentation
from refdiff.data.synthetic import HELD_OUT_FROM, questions
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of
from refdiff.profiling.spans import Stopwatch
from refdiff.profiling.timed_sessions import TimedSessions
from refdiff.runtime.pipeline import Segmenter

RECORD = RESULTS / "shortcuts.json"
VARIANTS = ("official", "edge")
SWITCHES = tuple(field.name for field in dataclasses.fields(Shortcuts))
VARIANTS = {
    "all": ALL_SHORTCUTS,
    **{f"without {name}": dataclasses.replace(ALL_SHORTCUTS, **{name: False}) for name in SWITCHES},
    "none": Shortcuts(**dict.fromkeys(SWITCHES, False)),
}
MORE_PHRASES = ("the thing on the left", "the red thing", "the largest thing")
"""Asked of every scene behind its own phrase."""


def main() -> None:
    """Measure both profiles and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=6)
    given = parser.parse_args()
    asked = []
    for each in questions(range(HELD_OUT_FROM, HELD_OUT_FROM + 10 * given.scenes)):
        if len(asked) < given.scenes:
            asked.append((each.image, (each.phrase, *MORE_PHRASES)))
    for variant in VARIANTS:
        add_entry(RECORD, f"mini {variant}", _measured(variant, asked))


def _measured(variant: str, asked: Sequence[tuple[NDArray[np.uint8], Sequence[str]]]) -> dict[str, Any]:
    bundle = find_bundle("mini")
    running: dict[str, tuple[Segmenter, Stopwatch]] = {}
    for name, shortcuts in VARIANTS.items():
        watch = Stopwatch(time.process_time_ns)
        timed = TimedSessions(open_sessions(bundle, backend="ort-cpu", threads=1), watch)
        options = options_for(bundle.spec, variant=variant, shortcuts=shortcuts)
        running[name] = segmenter_of(bundle, timed, options), watch
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    worst = dict.fromkeys(VARIANTS, 0.0)
    for turn, (image, phrases) in enumerate([asked[0], *asked]):  # the first turn warms up
        answers = {}
        for name, (segmenter, watch) in running.items():
            spent, answers[name] = _turn(segmenter, watch, image, phrases)
            if turn:
                seconds[name].append(spent)
        for name, answer in answers.items():
            worst[name] = max(worst[name], _difference(answer, answers["all"]))
    for segmenter, _ in running.values():
        segmenter.close()
    medians = {
        name: {key: statistics.median(each[key] for each in values) for key in values[0]}
        for name, values in seconds.items()
    }
    return {
        "scenes": len(asked),
        "phrases": 1 + len(MORE_PHRASES),
        "milliseconds": {
            name: {key: round(1e3 * value, 1) for key, value in each.items()}
            for name, each in medians.items()
        },
        "outside_the_graphs": round(medians["all"]["first_outside"] / medians["all"]["first"], 4),
        "largest_score_difference": worst,
    }


def _turn(
    segmenter: Segmenter, watch: Stopwatch, image: NDArray[np.uint8], phrases: Sequence[str]
) -> tuple[dict[str, float], list[Segmentation]]:
    """One picture with all its phrases: the time of the first answer, and of them all."""
    watch.take()
    started = time.process_time()
    scene = segmenter.encode(image)
    if not segmenter.options.shortcuts.keep_picture:  # the first phrase will encode it too
        watch.take()
        started = time.process_time()
    answers = [segmenter.segment(scene, phrases[0])]
    first = time.process_time() - started
    inside = sum(span.ms for span in watch.take() if span.kind == "graph") / 1e3
    answers += [segmenter.segment(scene, phrase) for phrase in phrases[1:]]
    every = time.process_time() - started
    return {"first": first, "first_outside": first - inside, "all": every}, answers


def _difference(answers: Sequence[Segmentation], expected: Sequence[Segmentation]) -> float:
    """Largest difference of the scores; infinite where a mask is another."""
    worst = 0.0
    for got, wanted in zip(answers, expected, strict=True):
        if not np.array_equal(got.mask, wanted.mask):
            return float("inf")
        finite = np.isfinite(wanted.scores.total)
        worst = max(worst, float(np.abs(got.scores.total - wanted.scores.total)[finite].max(initial=0.0)))
    return worst


if __name__ == "__main__":
    main()
