"""Options, grouped by the step that reads them, and the variants: constants of options.

`official` is the released arithmetic, `paper` the printed text, `edge` what a robot runs (METHOD §1, §9,
§10).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from refdiff.contracts.spec import ModelSpec
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.contracts.tuned_options import TunedOptions

Mode = Literal["gen", "gen+seg", "disc+seg", "full"]
MODES: tuple[str, ...] = get_args(Mode)
Focus = Literal["root", "last", "mean"]
Reader = Literal["rules", "spacy"]
READERS: tuple[str, ...] = get_args(Reader)


def check_cores(count: int, what: str, cores: int | None = None) -> None:
    """Refuse a number of threads or processes that is not between 1 and the number of cores.

    Args:
        count: as asked for.
        what: "threads" or "processes".
        cores: of the machine; None: those that the system reports.

    Raises:
        InputError: it is less or more.
    """
    most = cores or os.cpu_count() or 1
    if not 1 <= count <= most:
        raise InputError(
            f"got {count} {what}, expected 1 to {most}, the number of cores; "
            "leave the option out for the default"
        )


@dataclass(frozen=True, kw_only=True)
class ProposalOptions:
    """SAM's automatic mode and the area filter (METHOD §2)."""

    points_per_side: int = 32
    pred_iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    stability_offset: float = 1.0
    nms_iou: float = 0.7
    keep_largest: int = 10
    min_area_px: int = 0
    """Absolute rule of the release: 10,000 for RefCOCO and RefCOCO+, 0 for RefCOCOg."""
    min_area_share: float = 0.0
    """Relative rule of `edge`: share of the image's pixels."""
    peaks: int = 0
    """Number of heatmap peaks at which SAM is prompted for each phrase, in addition to the grid's points
    where the heatmap is above its mean (METHOD §10.2); 0: the whole grid, once per image."""
    negatives: int = 0
    """Points where the heatmap is cold that are added to each of these prompts as negative points, up to 14
    (METHOD §10.13); 0: none."""
    min_region_share: float = 0.0
    """Holes and separate regions of masks below this share of the image's pixels are removed (METHOD §10.1);
    0: none."""
    drop_filtered: bool = False
    """True: filtered candidates are out. False: the release's score x keep, oddities included (METHOD §9)."""
    decode_all_prompts: bool = False
    """Internal: run `sam_masks` on every prompt, not only on those whose predicted IoU passes the threshold.
    The candidates are the same; an export with random weights uses it to be sure that the graph runs."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """The heatmap (METHOD §4)."""

    timesteps: tuple[int, ...] = (51, 1)
    """Timestep input of the UNet at each pass; the first pass runs on level `start_level`."""
    start_level: int = 101
    """Index of the cumulative alpha that the first latent is noised to (the release is off by one)."""
    guidance: float = 9.0
    """Weight of what the phrase adds to the empty prompt; at 1 the empty prompt's passes are skipped."""
    sample_posterior: bool = True
    """Draw z from the posterior (release); False takes its mean."""
    focus: Focus = "root"
    """The token whose column of the attention is read."""
    rescale: bool = False
    """Read the share of the named thing's tokens in a softmax over the content tokens, where the phrase names
    other things too (METHOD §10.8)."""
    end_token: float = 0.0
    """Weight of the end token's map, added to the one that is read (METHOD §10.9)."""
    layer_weights: tuple[float, ...] = ()
    """Weights of the tapped layers' maps in the mean (METHOD §10.10); empty: all equal."""
    coarse: float = 0.0
    """Weight of the map of the UNet's coarsest level in the mean, where a tapped layer has 1 (METHOD
    §10.11); needs a bundle exported with `--maps coarse`."""
    propagate: int = 0
    """Number of times that the mean map is multiplied by the self-attention (METHOD §10.12); needs a bundle
    exported with `--maps self`."""
    softmax: bool = False
    """Per-head softmax probabilities (the paper's text); the exported graphs do not expose them."""
    uint8_lanczos: bool = True
    """Resize the map through uint8 LANCZOS as released; False: float bilinear."""


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """CLIP's score of crops and of masked attention (METHOD §5, §6)."""

    letterbox: bool = False
    """False: shorter side to CLIP's size, any aspect. True: letterbox to a square."""
    word_boundaries: bool = False
    """Look for "left" and "right" as words; False: as substrings, as released."""
    soft_root_weight: float = 0.5
    """Share of the root word's vector in the text vector of the masked-attention score."""
    hard_root_weight: float = 0.0
    """Share of the root word's vector in the text vector of the crop score; the paper's text has 0.5."""
    soft_long_side: int = 0
    """Longest side in px of the image for the masked attention; 0: the image's own size. A variant states it
    for a CLIP of 224 px, and `options_for` scales it to the model's."""
    negative: float = 0.0
    """Factor of the mean vector of the phrase's other nouns, subtracted from both text vectors, so that what
    looks like them scores less (METHOD §10.7)."""
    ramp_on_soft: bool = False
    """The paper's text puts the position ramp on the masked-attention branch instead of the crop."""


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """Weights of the score's parts (METHOD §7)."""

    hard: float = 0.7
    soft: float = 0.3
    generative: float = 0.05
    place: float = 0.0
    """Weight of the phrase's places and box relations (METHOD §10.4, §10.5); `edge` only."""
    contrast_balance: float = 1.0
    """b of the asymmetric contrast (2-b)*inside - b*outside (METHOD §10.6); 1 is the release's difference."""
    ramp_on_heat: bool = False
    """Multiply the position ramp into the map as well (METHOD §10.4)."""
    level_selector: Literal["contrast", "between-class"] = "contrast"
    """Method by which mode `gen` chooses among the map's level sets (METHOD §8)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of the pipeline."""

    variant: str = "official"
    mode: Mode = "full"
    seed: int = 0
    """Seed of the posterior sample and of the noise."""
    reader: Reader = "rules"
    """Finders of the head word: the built-in rules, or spaCy's parser as in the release (METHOD §3)."""
    min_confidence: float | None = None
    """Answers of a lower confidence, or of none, have no mask; None: every answer has its mask."""
    proposals: ProposalOptions = field(default_factory=ProposalOptions)
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    crops: CropOptions = field(default_factory=CropOptions)
    fusion: FusionOptions = field(default_factory=FusionOptions)
    cache_texts: bool = True
    """Internal: keep the text encoders' outputs and reuse them for equal texts. The answers are the same;
    recording and profiling turn it off, so that every phrase runs every graph."""

    @property
    def key(self) -> str:
        """Name of what a confidence is fitted for, such as "edge/full".

        Another reading of the map, or other weights of the parts, have a name of their own: their scores are
        others, and so is what a score says about the mask.
        """
        plain, base = f"{self.variant}/{self.mode}", VARIANTS.get(self.variant)
        own = (self.attention, self.fusion)
        if base is None or own == (base.attention, base.fusion):
            return plain
        return f"{plain}, tuned {hashlib.sha256(repr(own).encode()).hexdigest()[:12]}"


_OFFICIAL = Options()

_PAPER = Options(
    variant="paper",
    attention=AttentionOptions(softmax=True, uint8_lanczos=False),
    crops=CropOptions(word_boundaries=True, ramp_on_soft=True, hard_root_weight=0.5),
    # s = a*s_gen + (1-a)*s_disc, a = 0.1; s_disc = b*masked attention + (1-b)*crop, b = 0.3 (METHOD §8).
    fusion=FusionOptions(hard=0.9 * 0.7, soft=0.9 * 0.3, generative=0.1),
)

_EDGE = Options(
    variant="edge",
    proposals=ProposalOptions(
        points_per_side=8,
        pred_iou_threshold=0.7,
        stability_threshold=0.7,
        keep_largest=20,  # the release's ten lose small things on a full table
        drop_filtered=True,
    ),
    attention=AttentionOptions(
        timesteps=(51,),
        start_level=51,
        guidance=1.0,  # the empty prompt's pass costs as much as the phrase's and moves no answer
        sample_posterior=False,
        focus="last",
        uint8_lanczos=False,
    ),
    crops=CropOptions(letterbox=True, word_boundaries=True, soft_long_side=512),
    fusion=FusionOptions(place=0.15, generative=0.1, ramp_on_heat=True, level_selector="between-class"),
)

_STATED_FOR_PX = 224
"""Side in px of CLIP's image that a variant states `soft_long_side` for."""

VARIANTS: Mapping[str, Options] = MappingProxyType({o.variant: o for o in (_OFFICIAL, _PAPER, _EDGE)})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of what a pipeline computes; every verb that runs one takes it.

    Raises:
        InputError: from `pipeline_options`, an unknown variant, mode or reader, a negative area, or a
            confidence outside of 0..1.
    """

    variant: str = "edge"
    """"edge", "official" or "paper" (METHOD §1); "paper" needs the torch reference."""
    mode: str = "full"
    """"gen", "gen+seg", "disc+seg" or "full" (METHOD §1)."""
    seed: int = 0
    """Seed of the posterior sample and of the noise."""
    reader: str = "rules"
    """Finder of the head word of a phrase: "rules", or "spacy" where it is installed."""
    min_area_px: int = 0
    """Candidates of this many pixels or fewer are filtered out (METHOD §2). The release has 10,000 for
    RefCOCO and RefCOCO+, and 0 for RefCOCOg."""
    min_confidence: float | None = None
    """0..1: answer "no mask" if the confidence is lower, or if there is none; None: answer anyway."""
    tuned: TunedOptions | None = None
    """What `refdiff tune` found for this model, variant and mode; None: the variant's own options."""
    allow_random_weights: bool = False
    """Open a bundle whose weights were drawn at random: its masks mean nothing, its time and memory do."""
    expect: str | None = None
    """Hash of the manifest that the bundle must have, as `refdiff inspect` prints it; None: any bundle."""

    def pipeline_options(self, spec: ModelSpec) -> Options:
        """Return all options of the pipeline for a model of these sizes."""
        options = options_for(spec, variant=self.variant, mode=self.mode, seed=self.seed, reader=self.reader)
        if self.min_area_px < 0:
            raise InputError(f"got a minimum area of {self.min_area_px} px, expected 0 or more")
        proposals = dataclasses.replace(options.proposals, min_area_px=self.min_area_px)
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InputError(f"got a minimum confidence of {self.min_confidence}, expected 0 to 1")
        if self.tuned is not None:
            options = self.tuned.apply(options, spec.name)
        return dataclasses.replace(options, proposals=proposals, min_confidence=self.min_confidence)


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of where and how graphs run."""

    name: str = "auto"
    """One of `refdiff.engines.factory.BACKENDS`."""
    threads: int | None = None
    """CPU threads inside one operator; None leaves the choice to the back-end."""
    memory: str | None = None
    """Device memory for TensorRT plans: a budget such as "8GB", or "resident", "shared" or "staged"; None
    takes what fits."""
    batch_size: int | None = None
    """Largest batch of the UNet for several phrases, limited by what the back-end supports; larger batches
    need more memory. None: two."""
    run_limit_s: float | None = None
    """Seconds after which a run of one graph counts as hung and the process ends with exit code 3, for a
    supervisor to start it again; None: no limit."""


DEFAULT_RUN = RunOptions()
DEFAULT_BACKEND = BackendOptions()


def options_for(
    spec: ModelSpec,
    *,
    variant: str = "edge",
    mode: str = "full",
    seed: int = 0,
    reader: str = "rules",
) -> Options:
    """Return the named variant with the proposal thresholds that belong to this model's SAM.

    Raises:
        InputError: unknown variant, mode or reader.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}; choose one of: {', '.join(VARIANTS)}")
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}; choose one of: {', '.join(MODES)}")
    if reader not in READERS:
        raise InputError(f"unknown reader {reader!r}; choose one of: {', '.join(READERS)}")
    base, sam = VARIANTS[variant], spec.sam
    if variant == "edge":
        settings = (sam.edge_points_per_side, sam.edge_pred_iou_threshold, sam.edge_stability_threshold)
    else:
        settings = (sam.points_per_side, sam.pred_iou_threshold, sam.stability_threshold)
    points, iou, stability = settings
    proposals = dataclasses.replace(
        base.proposals, points_per_side=points, pred_iou_threshold=iou, stability_threshold=stability
    )
    side = base.crops.soft_long_side * spec.clip.image_size // _STATED_FOR_PX
    return dataclasses.replace(
        base,
        mode=mode,  # type: ignore[arg-type]
        seed=seed,
        reader=reader,  # type: ignore[arg-type]
        proposals=proposals,
        crops=dataclasses.replace(base.crops, soft_long_side=side),
    )
