"""The verb `camera`; see `verbs` for the pattern."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.cli.app import (
    Backend,
    BundleName,
    Expect,
    Json,
    Memory,
    Mode,
    Overwrite,
    Threads,
    Tuned,
    Variant,
    choice,
    verb,
)
from refdiff.cli.terminal import end, note, note_backend, print_answer, working

if TYPE_CHECKING:
    from refdiff.camera.recording import Recorder, Writer
    from refdiff.camera.summary import CameraSummary
    from refdiff.camera.track import Tracker
    from refdiff.contracts.progress import Progress

_RECORDING_FAILED = 1
_STATUS_S = {True: 0.5, False: 10.0}
"""Time between two lines of status, on a terminal and in a log."""


_SWITCH_S = 0.001
"""Longest time that Python code of the key lane holds up the track lane; Python's own is five times that."""


@verb()
def camera(
    bundle: BundleName,
    phrases: Annotated[
        list[str], typer.Argument(metavar="PHRASE...", help='English, e.g. "the red mug"; each is followed.')
    ],
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "-s",
            help="0, /dev/video0, rtsp://…, http://…, a video, a folder of images, csi://0, cmd:COMMAND, "
            "pattern or scenes.",
        ),
    ],
    frames: Annotated[
        str | None,
        choice("newest or every; newest if left out, and every for files and folders."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Frame size in px, for a device, a command and scenes.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Frames/s, for a device, a folder, pattern and scenes.")
    ] = None,
    pixel_format: Annotated[
        str | None, typer.Option(help="Of a command's frames, such as bgr24; of a device, such as mjpeg.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Play a file or a folder again at its end.")] = False,
    reconnect_for: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.01,
            help="Give up a source that has sent no frame for so long; never if left out.",
        ),
    ] = None,
    key: Annotated[
        str,
        choice(
            "When the whole pipeline answers a frame: auto, back to back; a number of seconds; or change, "
            "for new and lost phrases only."
        ),
    ] = "auto",
    level: Annotated[str, choice("How masks are followed in between: auto, points, sam, or off.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder for overlay.mp4, results.jsonl and summary.json."),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="The overlay's video, an mp4.")] = None,
    results: Annotated[Path | None, typer.Option(help="One JSON line per frame, with masks.")] = None,
    every_mask: Annotated[
        Path | None, typer.Option(help="A folder for the mask of every frame and phrase.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the overlay in a window (ffplay).")] = False,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Show no mask below this confidence.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so many seconds.")] = None,
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    tuned: Tuned = None,
    threads: Threads = None,
    memory: Memory = None,
    run_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="End with exit code 3 if one graph takes longer: it hangs. No limit if left out.",
        ),
    ] = None,
    allow_random_weights: Annotated[
        bool, typer.Option("--allow-random-weights", help="Run a bundle whose masks mean nothing.")
    ] = False,
    expect: Expect = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Follow what phrases name through the frames of a camera or a video.

    Every frame gets a mask of that very frame, its age, and a state: seen, tracked, stale or lost
    (docs/camera.md says what a robot should do in each). While it runs, lines on stdin change it:
    "phrase: the blue cup", "add: …", "pause", "resume", "variant: official", "key", "status", "quit".

    A summary of rates, delays and drops is printed at the end. Exit code 0 at the end of the source, after
    Ctrl-C and after "quit"; 3 if the source could not be opened; 1 if it was lost for good, or if a
    recording failed.
    """
    from refdiff.camera.options import CameraOptions
    from refdiff.camera.sources.source import SourceOptions
    from refdiff.camera.target import TrackOptions
    from refdiff.camera.track import Tracker
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.contracts.tuned_options import read_tuned_options

    options = CameraOptions(
        run=RunOptions(
            variant=variant,
            mode=mode,
            tuned=None if tuned is None else read_tuned_options(tuned),
            min_confidence=min_confidence,
            allow_random_weights=allow_random_weights,
            expect=expect,
        ),
        source=SourceOptions(
            frames=_one_of("--frames", frames, "newest", "every"),
            size_xy=None if size is None else _size(size),
            rate=rate,
            pixel_format=pixel_format,
            loop=loop,
            reconnect_for_s=reconnect_for,
        ),
        track=TrackOptions(level=_one_of("--level", level, "auto", "points", "sam", "off")),
        key=_key(key),
        max_frames=max_frames,
        seconds=seconds,
    )
    where = BackendOptions(name=backend, threads=threads, memory=memory, run_limit_s=run_limit)
    tracker = Tracker(bundle, source, phrases, options=options, backend=where)
    files = {"overlay.mp4": video, "results.jsonl": results}
    if output is not None:
        files = {name: path or output / name for name, path in files.items()}
    writers = _open_writers(tracker, files, output, every_mask, overwrite=overwrite, show=show)
    with working() as progress:
        summary = _run(tracker, writers, progress)
    if output is not None:
        from refdiff.contracts.atomic_io import report_write_errors, write_file

        with report_write_errors(output / "summary.json"):
            write_file(output / "summary.json", json.dumps(summary.to_json(), indent=1) + "\n")
    _report(summary, backend, as_json=as_json)


def _run(tracker: Tracker, writers: dict[str, Writer], progress: Progress) -> CameraSummary:
    """Run until the end, record, and return the summary, with what ended the run early."""
    from refdiff.camera.commands import obey, read_lines, stdin_descriptor
    from refdiff.camera.recording import Recorder
    from refdiff.errors import SourceLostError
    from refdiff.profiling.sensors import Sensors, throttled

    sensors, error = Sensors(), None
    sys.setswitchinterval(_SWITCH_S)
    with ExitStack() as stack:
        progress("opening the engines")
        stack.enter_context(tracker)
        recorders = [Recorder(name, writer, waits=tracker.lockstep) for name, writer in writers.items()]
        for each in recorders:
            stack.callback(each.close)
        descriptor = stdin_descriptor()
        if descriptor is not None:
            commands = partial(obey, read_lines(descriptor), tracker, note)
            threading.Thread(target=commands, name="refdiff-commands", daemon=True).start()
        start = sensors.read()
        try:
            _record(tracker, recorders, progress)
        except KeyboardInterrupt:
            tracker.stop()
        except SourceLostError as lost:
            error = str(lost)
        slower = throttled(start, start, sensors.read())
    files = {
        each.name: {"written": each.written, "dropped": each.dropped, "error": each.error}
        for each in recorders
        if each.name != "window"
    }
    return replace(tracker.summary(), files=files, throttling=slower, error=error)


def _record(tracker: Tracker, recorders: list[Recorder], progress: Progress) -> None:
    shown_s = 0.0
    every_s = _STATUS_S[sys.stderr is not None and sys.stderr.isatty()]
    for result in tracker:
        for each in recorders:
            each.put(result)
            if each.name == "window" and each.error:
                return  # the user closed it
        # A fault is logged when it happens, not when the next result comes.
        notes = [f"source {each.kind}: {each.reason}" for each in tracker.take_events() if not each.cause]
        notes += [
            f"key frame {event.frame} failed: {event.reason}"
            for event in result.events
            if event.kind == "failed"
        ]
        for text in notes:
            note(text)
        if time.monotonic() - shown_s >= every_s:
            shown_s = time.monotonic()
            progress(tracker.status())


def _report(summary: CameraSummary, backend: str, *, as_json: bool) -> None:
    from refdiff.camera.summary import summary_section
    from refdiff.errors import SourceLostError

    note_backend(backend, summary.backend, summary.backend_reason)
    print_answer(summary.to_json(), lambda: summary_section(summary), as_json=as_json)
    if summary.error:
        end(summary.error, SourceLostError.exit_code)
    failed = [values["error"] for values in summary.files.values() if values["error"]]
    if failed:
        end(failed[0], _RECORDING_FAILED)


def _open_writers(
    tracker: Tracker,
    files: dict[str, Path | None],
    output: Path | None,
    every_mask: Path | None,
    *,
    overwrite: bool,
    show: bool,
) -> dict[str, Writer]:
    """Check and open all places, before any engine is opened.

    Raises:
        InputError: a place is taken, or cannot be written.
        MissingDependencyError: PyAV, OpenCV, a display or ffplay is missing.
    """
    from refdiff.camera.recording import MaskWriter, OverlayWriter, ResultWriter
    from refdiff.camera.video_file import VideoFile, Window
    from refdiff.contracts.atomic_io import check_targets, report_write_errors
    from refdiff.errors import InputError

    for folder in (output, every_mask):
        if folder is not None:
            with report_write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
    check_targets([path for path in files.values() if path is not None], overwrite=overwrite)
    if every_mask is not None and not overwrite and any(every_mask.iterdir()):
        raise InputError(
            f"{every_mask} is not empty; choose another folder, or allow overwriting (--overwrite)"
        )
    writers: dict[str, Writer] = {}
    video, results = files["overlay.mp4"], files["results.jsonl"]
    if video is not None:
        writers[str(video)] = OverlayWriter(VideoFile(video), tracker.status)
    if show:
        writers["window"] = OverlayWriter(Window(f"refdiff: {', '.join(tracker.phrases)}"), tracker.status)
    if results is not None:
        with report_write_errors(results):
            writers[str(results)] = ResultWriter(results)
    if every_mask is not None:
        writers[str(every_mask)] = MaskWriter(every_mask)
    return writers


def _one_of(option: str, given: str | None, *names: str) -> Any:
    if given is not None and given not in names:
        raise typer.BadParameter(f"got {option} {given!r}, expected one of: {', '.join(names)}")
    return given


def _key(text: str) -> Any:
    try:
        return text if text in ("auto", "change") else float(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"got --key {text!r}, expected auto, change or a number of seconds"
        ) from error


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"got --size {text!r}, expected the width and height in px, such as 640x480")
    return int(width), int(height)
