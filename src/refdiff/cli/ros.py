"""The verbs `ros2` and `bag`; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    Variant,
    choice,
    verb,
)
from refdiff.cli.terminal import end, print_answer, working
from refdiff.reports.page import Section
from refdiff.reports.table import facts_table

if TYPE_CHECKING:
    from refdiff.camera.verdict import Level
    from refdiff.ros.bag import BagReport

_SOME_FAILED = 1
_ROS_ARGUMENTS = "--ros-args"

Key = Annotated[
    str,
    choice("When the whole pipeline answers an image: auto; a number of seconds, 0 for each; or change."),
]
Follow = Annotated[str, choice("How masks are followed in between: auto, points, sam, or off.")]
MinConfidence = Annotated[
    float | None, typer.Option(min=0, max=1, help="Publish no mask below this confidence.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Read the images as this encoding, such as bgr8, whatever they say.")
]


@verb()
def ros2(
    bundle: BundleName,
    phrases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHRASE...",
            help='English, e.g. "the red mug"; without one, the node waits for ~/prompt. ROS\'s own '
            "arguments come last, after --: -- --ros-args -r image:=/camera/image_raw.",
        ),
    ] = None,
    topic: Annotated[str | None, typer.Option(help='The images; "image" if left out.')] = None,
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Subscribe to TOPIC/compressed instead.")
    ] = False,
    encoding: Encoding = None,
    frames: Annotated[str | None, choice("newest or every; newest if left out.")] = None,
    key: Key = "auto",
    level: Follow = "auto",
    min_confidence: MinConfidence = None,
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    threads: Threads = None,
    memory: Memory = None,
) -> None:
    """Run a ROS 2 node: images and phrases in, masks with the header of their image out.

    It needs rclpy, which comes with ROS 2. docs/ros2.md lists topics and parameters; an option given here
    overrides the parameter of the same meaning. It ends on SIGINT and SIGTERM, with exit code 0.
    """
    from refdiff.contracts.optional import require_ros

    with require_ros("the node"):
        from refdiff.ros.node import run_node

    given, arguments = split_arguments(phrases or [])
    options = {
        "prompt": "\n".join(given) or None,
        "image_topic": topic,
        "transport": "compressed" if compressed else None,
        "encoding": encoding,
        "policy": frames,
        "min_confidence": min_confidence,
        "memory": memory,
        "threads": threads,
    }
    named = {"key": key, "level": level, "backend": backend, "variant": variant, "mode": mode}
    defaults = {"key": "auto", "level": "auto", "backend": "auto", "variant": "edge", "mode": "full"}
    options |= {name: value for name, value in named.items() if value != defaults[name]}
    with working():
        run_node(
            {"bundle": bundle, **{name: value for name, value in options.items() if value is not None}},
            arguments,
        )


def split_arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """Split phrases from ROS's arguments."""
    at = words.index(_ROS_ARGUMENTS) if _ROS_ARGUMENTS in words else len(words)
    return words[:at], words[at:]


@verb()
def bag(
    bundle: BundleName,
    recording: Annotated[
        Path, typer.Argument(metavar="BAG", help="An .mcap, .db3 or .bag file, or a rosbag2 folder.")
    ],
    phrases: Annotated[
        list[str], typer.Argument(metavar="PHRASE...", help='English, e.g. "the red mug"; each is followed.')
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="An .mcap file, or a name for a rosbag2 folder (SQLite).")
    ],
    topic: Annotated[str | None, typer.Option(help="Of the images; needed if there are several.")] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Answer every Nth image only.")] = 1,
    key: Key = "auto",
    level: Follow = "auto",
    copy: Annotated[bool, typer.Option("--copy", help="Copy the bag's own messages too.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write overlays too.")] = False,
    stale_masks: Annotated[
        bool, typer.Option("--stale-masks", help="Keep stale masks in the masks and labels.")
    ] = False,
    encoding: Encoding = None,
    prefix: Annotated[str, typer.Option(help="Namespace of the topics that are written.")] = "/refdiff",
    min_confidence: MinConfidence = None,
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    threads: Threads = None,
    memory: Memory = None,
    expect: Expect = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment the images of a ROS bag and write the masks to a bag; ROS is not needed.

    Each mask has the header and the time of its image. Masks are followed from image to image; with --key 0,
    each image is answered by itself. Images that cannot be read are counted, and the exit code is then 1.
    """
    from refdiff.camera.options import CameraOptions
    from refdiff.camera.verdict import TrackOptions
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.ros.bag import BagOptions, segment_bag
    from refdiff.ros.parameters import key_of

    camera = CameraOptions(
        run=RunOptions(variant=variant, mode=mode, min_confidence=min_confidence, expect=expect),
        track=TrackOptions(level=cast("Level", level)),
        key=key_of(key),
    )
    options = BagOptions(
        topic=topic,
        camera=camera,
        every=every,
        copy=copy,
        overlay=overlay,
        stale_masks=stale_masks,
        encoding=encoding or "",
        prefix=prefix,
        overwrite=overwrite,
    )
    with working() as progress:
        report = segment_bag(
            bundle,
            recording,
            phrases,
            output,
            options=options,
            backend=BackendOptions(name=backend, threads=threads, memory=memory),
            progress=progress,
        )
    print_answer(report.to_json(), lambda: _section(report), as_json=as_json)
    if report.failures:
        reason, count = next(iter(report.failures.items()))
        end(f"{sum(report.failures.values())} images cannot be read, {count} because: {reason}", _SOME_FAILED)


def _section(report: BagReport) -> Section:
    facts: list[tuple[str, Any]] = [
        ("topic", report.topic),
        ("images", f"{report.images}, {report.answered} answered, {report.matched} with a mask"),
        ("copied", f"{report.copied} messages"),
        ("back-end", report.backend),
        ("output", str(report.output)),
    ]
    return Section(tables=(facts_table(facts),))
