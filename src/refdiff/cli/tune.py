"""The verb `tune`; see `verbs` for the pattern."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import Backend, BundleName, Json, Overwrite, Variant, verb
from refdiff.cli.terminal import note, print_answer, working


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
