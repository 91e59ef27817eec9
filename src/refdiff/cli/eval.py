"""The verbs `eval` and `tune`; see `verbs` for the pattern."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.cli.app import (
    Backend,
    BundleName,
    Expect,
    Json,
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
from refdiff.cli.terminal import note, note_backend, print_answer, working

if TYPE_CHECKING:
    from refdiff.batch.distributed import RayOptions
    from refdiff.data.sample import Dataset
    from refdiff.evaluation.evaluate import EvaluationReport


@verb("eval")
def evaluate(
    bundle: BundleName,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data sets: a REFER tree, parquet tables, ReasonSeg, images/ with masks/, a CSV or COCO "
            "file. Default: rendered scenes."
        ),
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option(help='Only these, e.g. "RefCOCO (unc, val)" or testA; repeatable.')
    ] = None,
    reviewed: Annotated[
        Path | None, typer.Option(help="Folder of Ref-L4's reviews: leave out sentences that are wrong.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pictures.")] = None,
    shard: Annotated[str, typer.Option(help="Part i of n of the pictures, as i/n.")] = "1/1",
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept a published data set that is incomplete.")
    ] = False,
    count: Annotated[int, typer.Option(help="Number of rendered scenes, one phrase each.")] = 500,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the first scene; 1,000,000 if left out.")
    ] = None,
    runtime: Annotated[str, choice("onnx, or torch for the reference of the miniature.")] = "onnx",
    backend: Backend = "auto",
    variant: Variant = "edge",
    mode: Mode = "full",
    min_area: MinArea = 0,
    tuned: Tuned = None,
    jobs: Annotated[
        int | None, typer.Option(help="Number of processes; on Ray, of workers. Default: 1; on Ray, all.")
    ] = None,
    threads: Threads = None,
    ray: Ray = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of records; a run resumes there.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="published: compare with the paper, and exit with 1 on a difference."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with tables, distributions and cases.")
    ] = None,
    coco: Annotated[Path | None, typer.Option(help="Write the answers as COCO results.")] = None,
    refer: Annotated[
        Path | None, typer.Option(help="Write the answers in REFER's layout: an existing folder.")
    ] = None,
    overwrite: Overwrite = False,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Count answers below this confidence as empty masks."),
    ] = None,
    falsehoods: Annotated[
        bool,
        typer.Option("--falsehoods", help="Rendered scenes also with phrases that fit nothing in them."),
    ] = False,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit-confidence",
            help="Fit the confidence on these samples and put it into the bundle; rendered scenes come with "
            "falsehoods then, and start at seed 0.",
        ),
    ] = False,
    audit: Annotated[
        str | None, typer.Option(help="release: switch each oddity of the released evaluation on alone.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what is there, and estimate time and memory.")
    ] = False,
    allow_random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Evaluate a bundle with random weights.")
    ] = False,
    expect: Expect = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a bundle, or of the torch reference, on data sets with true masks.

    Columns: oIoU is all overlaps over all unions, Pr@0.5 the share of samples with an IoU above 0.5,
    oracle the mIoU of always choosing the best candidate.
    """
    from refdiff.contracts.atomic_io import check_targets
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.contracts.tuned_options import read_tuned_options
    from refdiff.data.synthetic import HELD_OUT_FROM, RenderedScenes, ScenesWithFalsehoods
    from refdiff.errors import GateError
    from refdiff.evaluation import evaluate
    from refdiff.evaluation.datasets import Selection
    from refdiff.evaluation.published import published_rows, published_table
    from refdiff.evaluation.report import evaluation_section

    _check_choice("table", table, "published")
    _check_choice("audit", audit, "release")
    start = seed if seed is not None else 0 if fit else HELD_OUT_FROM
    maker = ScenesWithFalsehoods if falsehoods or fit else RenderedScenes
    scenes = maker(count=count, seed=start)
    chosen = _dataset(data, subset or (), reviewed, limit, shard, scenes, partial=partial)
    options = RunOptions(
        variant=variant,
        mode=mode,
        min_area_px=min_area,
        min_confidence=min_confidence,
        tuned=None if tuned is None else read_tuned_options(tuned),
        allow_random_weights=allow_random_weights,
        expect=expect,
    )
    place = BackendOptions(name=backend, threads=threads)
    if audit is not None:
        from refdiff.evaluation.published import audit_json, audit_release, audit_table

        with working() as progress:
            audited = audit_release(bundle, chosen, options=options, backend=place, progress=progress)
        print_answer(audit_json(audited), lambda: audit_table(audited), as_json=as_json)
        return
    if fit:
        from refdiff.evaluation.fit_confidence import confidence_section, fit_confidence

        with working() as progress:
            fitted = fit_confidence(bundle, chosen, options=options, backend=place, progress=progress)
        print_answer(fitted.to_json(), lambda: confidence_section(fitted), as_json=as_json)
        return
    if dry_run:
        with working():
            plan = evaluate.estimate(
                bundle, chosen, options=options, backend=place, jobs=1 if jobs is None else jobs
            )
        print_answer(plan.to_json(), plan.to_section, as_json=as_json)
        return
    check_targets(_targets(html, coco, refer), overwrite=overwrite)
    with working() as progress:
        report = evaluate.evaluate(
            bundle,
            chosen,
            runtime=runtime,
            options=options,
            backend=place,
            jobs=_workers(ray, jobs, threads),
            output=output,
            progress=progress,
        )
    _write(report, chosen, html, coco, refer, overwrite=overwrite)
    for caution in report.cautions:
        note(f"caution: {caution}")
    if report.backend is not None and report.backend_reason is not None:
        note_backend(backend, report.backend, report.backend_reason)
    if table is None:
        print_answer(report.to_json(), lambda: evaluation_section(report), as_json=as_json)
        return
    unfinished = chosen.partial if isinstance(chosen, Selection) else ()
    rows = published_rows(
        report.by_subset,
        mode=mode,
        variant=variant,
        partial=unfinished,
        other_selector=report.other_selector,
    )
    document = {**report.to_json(), "published": [row.to_json() for row in rows]}
    print_answer(document, lambda: published_table(rows), as_json=as_json)
    failed = [row for row in rows if row.reproduced is False]
    if failed:
        first = failed[0]
        note(
            f"error: {len(failed)} of {len(rows)} published values are not reproduced, first: {first.subset} "
            f"{first.metric} {first.ours:.2f}, published {first.published:.2f}"
        )
        raise typer.Exit(GateError.exit_code)


def _workers(ray: str | None, jobs: int | None, threads: int | None) -> int | RayOptions:
    """Return the number of processes, or the cluster."""
    from refdiff.batch.distributed import RayOptions

    if ray is not None:
        return RayOptions(address=ray, workers=jobs, cpus=threads or 1)
    return 1 if jobs is None else jobs


def _check_choice(name: str, given: str | None, known: str) -> None:
    if given not in (None, known):
        raise typer.BadParameter(f"unknown {name} {given!r}; choose: {known}")


def _targets(html: Path | None, coco: Path | None, refer: Path | None) -> list[Path]:
    """Return the files that are asked for: page, COCO results, refs and instances."""
    in_folder = [] if refer is None else [refer / "refs(refdiff).json", refer / "instances.json"]
    return [path for path in (html, coco, *in_folder) if path is not None]


def _write(
    report: EvaluationReport,
    samples: Dataset,
    html: Path | None,
    coco: Path | None,
    refer: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Write the files that are asked for, all or none."""
    from refdiff.contracts.atomic_io import write_files
    from refdiff.evaluation.exports import coco_results, refer_layout
    from refdiff.evaluation.report import evaluation_page

    contents = {}
    if html is not None:
        contents[html] = evaluation_page(report, samples).to_html().encode()
    if coco is not None:
        contents[coco] = json.dumps(coco_results(report.records)).encode()
    if refer is not None:
        documents = refer_layout(report.records)
        for path, document in zip(_targets(None, None, refer), documents, strict=True):
            contents[path] = json.dumps(document).encode()
    write_files(contents, overwrite=overwrite)
    for path in contents:
        note(f"wrote {path}")


def _dataset(
    data: Path | None,
    names: Sequence[str],
    reviewed: Path | None,
    limit: int | None,
    shard: str,
    scenes: Dataset,
    *,
    partial: bool,
) -> Dataset:
    """Return the data sets at `data`, or the rendered scenes."""
    from refdiff.evaluation.datasets import find_subsets, select

    if data is None:
        if names or reviewed or limit or partial or shard != "1/1":
            raise typer.BadParameter("--subset, --reviewed, --limit, --shard and --partial need --data ROOT")
        return scenes
    part, _, parts = shard.partition("/")
    if not (part.isdigit() and parts.isdigit()):
        raise typer.BadParameter(f"got --shard {shard!r}, expected i/n, such as 1/4")
    reviews = sorted(reviewed.glob("*_reviewed.json")) if reviewed is not None else ()
    if reviewed is not None and not reviews:
        raise typer.BadParameter(f"--reviewed {reviewed} holds no file that ends in _reviewed.json")
    return select(
        find_subsets(data),
        names=names,
        reviews=reviews,
        limit=limit,
        shard=(int(part), int(parts)),
        allow_partial=partial,
    )


@verb()
def tune(
    bundle: BundleName,
    data: Annotated[Path, typer.Option(help="Data sets with true masks, as for eval.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the options that were found.")
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option(help="Only these data sets, as for eval; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pictures.")] = None,
    variant: Variant = "edge",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into images, and of the search.")] = 0,
    backend: Backend = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Search weights and ways to read the map on your own labelled images (needs refdiff[eval]).

    40 % of the images are held out; only their mIoU says what the options are worth. Use the file with
    segment and eval: --options FILE. The variant's confidence does not hold for other options.
    """
    from refdiff.contracts.atomic_io import check_targets, write_files
    from refdiff.contracts.options import BackendOptions, RunOptions
    from refdiff.evaluation import tune as tuning
    from refdiff.evaluation.datasets import find_subsets, select

    check_targets([] if output is None else [output], overwrite=overwrite)
    # Nothing is compared with published figures here: a part of a published data set will do.
    samples = select(find_subsets(data), names=subset or (), limit=limit, allow_partial=True)
    with working() as progress:
        report = tuning.tune(
            bundle,
            samples,
            options=RunOptions(variant=variant),
            backend=BackendOptions(name=backend),
            seed=seed,
            progress=progress,
        )
    if output is not None:
        text = json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"
        write_files({output: text.encode()}, overwrite=overwrite)
        note(f"wrote {output}")
    print_answer(report.to_json(), report.to_section, as_json=as_json)
