"""The verbs `export` and `convert`, which write bundles; see `verbs` for the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.cli.app import BundleName, Json, Overwrite, choice, verb
from refdiff.cli.terminal import note, print_answer, working


@verb()
def export(
    model: Annotated[
        str, typer.Argument(help="mini, mini-edge, refdiff (SAM ViT-H), refdiff-vitb or refdiff-edge.")
    ] = "mini",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle's folder; MODEL-PRECISION if left out.")
    ] = None,
    precision: Annotated[
        str, choice("fp32, fp16, bf16, int8 or fp8; see `refdiff convert` for its options.")
    ] = "fp32",
    diffusion: Annotated[
        str | None, typer.Option(help="Stable Diffusion 1.x or 2.x: hub id, folder or file.")
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(help="Another autoencoder, such as TAESD: hub id, folder or file."),
    ] = None,
    sam: Annotated[
        str | None, typer.Option(help="SAM, MobileSAM or EfficientViT-SAM: hub id, folder or file.")
    ] = None,
    sam_encoder: Annotated[
        str | None, typer.Option(help="An image encoder for SAM's decoder as ONNX, such as NanoSAM's.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP: hub id, folder or file.")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side in px of the image that the diffusion model sees; 512 if left out."),
    ] = None,
    taps: Annotated[
        str, choice("all or down: read the attention in the whole UNet, or on its way down only.")
    ] = "all",
    prediction: Annotated[
        str | None,
        choice("epsilon or v_prediction, where the diffusion checkpoint does not say."),
    ] = None,
    diffusion_weights: Annotated[
        str | None,
        typer.Option(help="ema or non-ema, where the checkpoint holds both; non-ema of a named model."),
    ] = None,
    clip_activation: Annotated[
        str | None, choice("gelu or quick_gelu, where the CLIP checkpoint does not say.")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Draw the weights instead of reading them; --diffusion sd21, --vae taesd, --sam vit_l, "
            "--clip vit_l_14 then name architectures.",
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of random weights; 0 if left out.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="The folder `refdiff fetch` filled.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    maps: Annotated[
        str, choice("More of the UNet's attention as outputs: coarse, self, or coarse,self (method 10.11).")
    ] = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export torch models as a bundle of checked graphs (needs refdiff[export,cpu]).

    Columns: from torch is the largest difference from torch's outputs over their range, precision the number
    type of the weights; in the sizes of inputs and outputs a letter is a size that varies. docs/output.md
    explains all tables.
    """
    from refdiff.cli.verbs import bundle_section
    from refdiff.contracts.inspection import Inspection
    from refdiff.export.export import export as export_model
    from refdiff.models.choice import ModelChoice

    choice = ModelChoice(
        name=model,
        diffusion=diffusion,
        vae=vae,
        sam=sam,
        sam_encoder=sam_encoder,
        clip=clip,
        size=size,
        taps=taps,
        prediction=prediction,
        diffusion_weights=diffusion_weights,
        clip_activation=clip_activation,
        random_weights=random_weights,
        seed=seed,
        checkpoints=checkpoints,
        offline=offline,
    )
    folder = output or Path(f"{Path(choice.title).name}-{precision}")
    with working() as progress:
        manifest = export_model(
            choice,
            precision,
            output=folder,
            maps=[name.strip() for name in maps.split(",") if name.strip()],
            overwrite=overwrite,
            progress=progress,
        )
    if manifest.random_seed is not None:
        note("note: the weights are random; this bundle is for measuring time and memory only")
    inspection = Inspection(path=folder, manifest=manifest)
    print_answer(inspection.to_json(), lambda: bundle_section(inspection), as_json=as_json)


@verb()
def convert(
    bundle: BundleName,
    precision: Annotated[str, choice("fp16, bf16, int8 or fp8.")],
    recipe: Annotated[
        Path | None, typer.Option(help="A precision recipe to follow; the built-in rules if left out.")
    ] = None,
    feeds: Annotated[
        Path | None,
        typer.Option(
            help="Recording of `refdiff calibrate`, for int8 and fp8; scenes of the miniature if left out."
        ),
    ] = None,
    ranges: Annotated[str, choice("minmax, percentile or entropy.")] = "percentile",
    smooth: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of SmoothQuant, for int8 and fp8; 0: none.")
    ] = 0.7,
    budget: Annotated[
        str | None, typer.Option(help='Largest loss in accuracy from eight bits, such as "mIoU -0.5".')
    ] = None,
    untimed: Annotated[
        bool,
        typer.Option(
            "--untimed",
            help="Keep int8 and fp8 even where the GPU here is slower with them: for size, or another GPU.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The new bundle's folder; BUNDLE-PRECISION if left out."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert an fp32 bundle to fewer bits, each graph checked (needs refdiff[export,cpu], but not torch).

    Columns: from torch is the largest difference from torch's outputs over their range, precision the number
    type of the weights; in the sizes of inputs and outputs a letter is a size that varies. docs/output.md
    explains all tables.
    """
    from refdiff.calibration import convert
    from refdiff.cli.verbs import bundle_section
    from refdiff.contracts.inspection import Inspection

    options = convert.PrecisionOptions(
        precision=precision,
        recipe=recipe,
        feeds=feeds,
        ranges=ranges,
        smoothing=smooth or None,
        budget=budget,
        timed=not untimed,
    )
    folder = output or Path(f"{Path(bundle).resolve().name}-{precision}")
    with working() as progress:
        manifest = convert.convert(bundle, options, output=folder, overwrite=overwrite, progress=progress)
    inspection = Inspection(path=folder, manifest=manifest)
    print_answer(inspection.to_json(), lambda: bundle_section(inspection), as_json=as_json)
