"""The verb `segment`; see `verbs` for the pattern."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.cli.app import (
    Backend,
    BundleName,
    Expect,
    Json,
    Memory,
    MinArea,
    Mode,
    Overwrite,
    Ray,
    Threads,
    Tuned,
    Variant,
    choice,
    verb,
)
from refdiff.cli.terminal import end, note_backend, print_answer, working

if TYPE_CHECKING:
    from refdiff.contracts.options import BackendOptions, RunOptions

SOME_FAILED, ALL_FAILED = 1, 2
"""Exit codes of a run with images that failed: some, or all, as for a single image."""


@verb()
def segment(
    bundle: BundleName,
    image: Annotated[Path, typer.Argument(help="A still image, or a folder of them.")],
    phrases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHRASE...", help='English, e.g. "the red mug on the left"; several are all segmented.'
        ),
    ] = None,
    phrase_file: Annotated[
        Path | None,
        typer.Option("--phrases", help='A CSV file with the header "image,phrase", for a folder of images.'),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The mask's PNG; .overlay.png and .json go next to it. For many answers, "
            "a folder; repeat a stopped run to resume there.",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Search the sub-folders of a folder too.")
    ] = False,
    coco: Annotated[
        bool, typer.Option("--coco", help="Also write coco.json: all masks of a folder in COCO's format.")
    ] = False,
    export: Annotated[
        list[str] | None,
        choice("Also write a data set to train on: coco, yolo-seg or label-studio; repeatable.", "--export"),
    ] = None,
    overlay: Annotated[Path | None, typer.Option(help="The overlay's PNG, elsewhere or alone.")] = None,
    focus: Annotated[str | None, typer.Option(help="The phrase's head word, if it is read wrong.")] = None,
    box: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Segment what is in a box, in px, without a phrase."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[:0]",
            help="Segment what is at a point, in px, without a phrase; :0 makes it negative; repeatable.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Most phrases per UNet call; 2 if left out; more take more memory."),
    ] = None,
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    min_area: MinArea = 0,
    tuned: Tuned = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the diffusion branch's noise.")] = 0,
    reader: Annotated[str, choice("How to find the head word: rules, or spacy if installed.")] = "rules",
    threads: Threads = None,
    memory: Memory = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help='Return no mask below this confidence: "matched": false, with the reason.'
        ),
    ] = None,
    run_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="End with exit code 3 if one graph takes longer: it hangs. No limit if left out.",
        ),
    ] = None,
    ray: Ray = None,
    allow_random_weights: Annotated[
        bool, typer.Option("--allow-random-weights", help="Run a bundle whose masks mean nothing.")
    ] = False,
    expect: Expect = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the best candidate for a phrase in an image, or for each of many in each image of a folder.

    The best candidate is returned even if nothing fits, unless --min-confidence withholds it. Its cautions
    say what may be wrong. "matched": false means that there is no mask; the exit code is 0 then, too.
    A folder run reports images that fail by name and goes on; it then ends with exit code 1, or 2 if all have
    failed.

    With --box or --point, SAM alone segments what they show, and no phrase is read.

    Columns: score is the weighted sum of hard (CLIP on the crop), soft (CLIP on the image, masked), gen (the
    heatmap inside the mask) and place (words such as "left"); docs/output.md explains all.
    """
    from refdiff.batch.distributed import RayOptions
    from refdiff.batch.folder import FolderOptions
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.contracts.tuned_options import read_tuned_options

    _check_order(bundle, image, phrases or [])
    options = RunOptions(
        variant=variant,
        mode=mode,
        seed=seed,
        reader=reader,
        min_area_px=min_area,
        tuned=None if tuned is None else read_tuned_options(tuned),
        min_confidence=min_confidence,
        allow_random_weights=allow_random_weights,
        expect=expect,
    )
    where = BackendOptions(
        name=backend, threads=threads, memory=memory, batch_size=batch_size, run_limit_s=run_limit
    )
    outputs = {"output": output, "overlay": overlay, "overwrite": overwrite}
    if box is not None or point:
        phrase_options = {
            "a phrase": phrases,
            "--phrases": phrase_file,
            "--focus": focus,
            "--batch-size": batch_size,
        }
        run_options = {
            "--min-confidence": min_confidence,
            "--recursive": recursive,
            "--coco": coco,
            "--export": export,
            "--ray": ray,
        }
        _refuse_with_prompt({**phrase_options, **run_options})
        _prompted(bundle, image, box, point or [], options, where, outputs, as_json=as_json)
        return
    if phrases and len(phrases) == 1 and phrase_file is None and not image.is_dir():
        many = {"--ray is for a folder": ray, "--export is for an output folder": export}
        _refuse({"--batch-size is for several phrases": batch_size, **many}, "leave it out")
        _one(bundle, image, phrases[0], focus, options, where, outputs, as_json=as_json)
        return
    if overlay is not None or focus is not None:
        given = "--overlay" if overlay is not None else "--focus"
        raise typer.BadParameter(f"{given} is for one image and one phrase; leave it out")
    if phrases and phrase_file is not None:
        raise typer.BadParameter("got phrases and --phrases, expected one of them; leave the other out")
    if output is None:
        for_folder = {"--coco": coco, "--ray": ray, "--export": export}
        named = {f"{name} is for an output folder": value for name, value in for_folder.items()}
        _refuse(named, "name one (--output)")
    from refdiff.batch.folder import segment_many
    from refdiff.batch.tables import batch_section

    cluster = None if ray is None else RayOptions(address=ray, cpus=threads or 1)
    with working() as progress:
        result = segment_many(
            bundle,
            image,
            phrase_file or phrases or [],
            output=output,
            folder=FolderOptions(
                overwrite=overwrite,
                recursive=recursive,
                coco=coco,
                export=tuple(export or ()),
                ray=cluster,
            ),
            options=options,
            backend=where,
            progress=progress,
        )
    note_backend(backend, result.backend, result.backend_reason)
    print_answer(result.to_json(), lambda: batch_section(result), as_json=as_json)
    if result.failures:
        first, *others = result.failures.values()
        more = f" (and {len(others)} images more)" if others else ""
        end(f"{first}{more}", SOME_FAILED if result.answered + result.resumed else ALL_FAILED)


def _check_order(bundle: str, image: Path, phrases: list[str]) -> None:
    """Refuse an image in the place of the bundle, with the command that was meant.

    Raises:
        BadParameter: the bundle was forgotten, or bundle and image are swapped.
    """
    from refdiff.contracts.inspection import MINIATURES

    given = Path(bundle)
    if not given.is_file():
        return
    if (image / "manifest.json").is_file() or str(image) in MINIATURES:
        words = " ".join(map(shlex.quote, phrases))
        meant = f"refdiff segment {shlex.quote(str(image))} {shlex.quote(bundle)} {words}"
        raise typer.BadParameter(f"bundle and image are swapped; put the bundle first: {meant}".strip())
    words = " ".join(shlex.quote(each) for each in (str(image), *phrases))
    raise typer.BadParameter(
        f"got no bundle: {given} is a file; put the bundle first: "
        f"refdiff segment mini {shlex.quote(bundle)} {words}"
    )


def _one(
    bundle: str,
    image: Path,
    phrase: str,
    focus: str | None,
    options: RunOptions,
    backend: BackendOptions,
    outputs: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from refdiff.batch import prediction
    from refdiff.batch.tables import prediction_table

    prediction.check_outputs(image, **outputs)
    with working() as progress:
        progress(f"segmenting {image}")
        found = prediction.segment(bundle, image, phrase, focus=focus, options=options, backend=backend)
        files = prediction.save(found, **outputs)
    document = {**found.to_json(), "files": {kind: str(path) for kind, path in files.items()}}
    note_backend(backend.name, found.backend, found.backend_reason)
    print_answer(document, lambda: prediction_table(found, files), as_json=as_json)


def _refuse(options: Mapping[str, object], advice: str) -> None:
    """Refuse options: complaint -> value, None or empty if it was not given.

    Raises:
        BadParameter: states the first complaint.
    """
    for complaint, value in options.items():
        if value is not None and value not in (False, []):
            raise typer.BadParameter(f"{complaint}; {advice}")


def _refuse_with_prompt(options: Mapping[str, object]) -> None:
    """Refuse what has no meaning for a box or points: name -> value, empty or None if it was not given.

    Raises:
        BadParameter: names the first one that was given.
    """
    for name, value in options.items():
        if value:
            raise typer.BadParameter(
                f"got {name} with --box or --point, expected one of them alone; leave it out"
            )


def _prompted(
    bundle: str,
    image: Path,
    box: str | None,
    points: list[str],
    options: RunOptions,
    backend: BackendOptions,
    outputs: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from refdiff.batch import prediction
    from refdiff.batch.prompted import prompted_table, segment_prompt

    corners = None if box is None else _numbers(box, "--box", 4, "x0,y0,x1,y1")
    labels = [0 if each.endswith(":0") else 1 for each in points]
    places = [
        _numbers(each.removesuffix(":0").removesuffix(":1"), "--point", 2, "x,y, x,y:1 or x,y:0")
        for each in points
    ]
    prediction.check_outputs(image, **outputs)
    with working() as progress:
        progress(f"segmenting {image}")
        found = segment_prompt(
            bundle, image, box=corners, points=places, labels=labels, options=options, backend=backend
        )
        files = prediction.save(found, **outputs)
    document = {**found.to_json(), "files": {kind: str(path) for kind, path in files.items()}}
    note_backend(backend.name, found.backend, found.backend_reason)
    print_answer(document, lambda: prompted_table(found, files), as_json=as_json)


def _numbers(text: str, option: str, count: int, form: str) -> list[float]:
    """Read numbers separated by commas.

    Raises:
        BadParameter: it is another number of numbers, or something else.
    """
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise typer.BadParameter(f"got {option} {text!r}, expected {form} in px")
    return numbers
