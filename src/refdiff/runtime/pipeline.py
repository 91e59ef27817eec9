"""Ref-Diff on engines: a picture and a phrase in, a mask out. Read it beside METHOD.md.

Axes: n = candidates, y/x = picture rows/columns, g = CLIP's training grid, w = its token width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates, Segmentation
from refdiff.contracts.session import Float, SessionFactory, to_host
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import InputError
from refdiff.runtime.attention_branch import LatentState, attend_each, latent_state
from refdiff.runtime.batching import TEXT_ROWS, UNET_ROWS
from refdiff.runtime.clip_branch import ClipBranch
from refdiff.runtime.encoded_image import ByDirection, Scene
from refdiff.runtime.heatmap import heat_map
from refdiff.runtime.image import read_picture
from refdiff.runtime.observer import Nobody, Observer, staged
from refdiff.runtime.phrase import Phrase, read_phrase
from refdiff.runtime.point_prompts import map_prompts
from refdiff.runtime.proposals import embed, propose, propose_at
from refdiff.runtime.scoring import attention_contrast, conclude, fuse, level_sets, score_level_sets
from refdiff.runtime.spatial import heat_ramp
from refdiff.runtime.text_cache import TextKeeping
from refdiff.runtime.tokenizer import Tokenizer


class Segmenter:
    """Finds what a phrase names, over one bundle's graphs. It owns the sessions: use it in a `with` block.

    Args:
        sessions: opens the graphs; closed with the segmenter.
        spec: the models' sizes.
        options: a variant, or a change of one.
        tokenizer: of the bundle.
        positions: [g*g, w], CLIP's position table without the class token's row.
        observer: told of every stage; None: nobody is.

    Raises:
        InputError: the options need what no exported graph has, or the table does not fit the spec.
    """

    def __init__(
        self,
        *,
        sessions: SessionFactory,
        spec: ModelSpec,
        options: Options,
        tokenizer: Tokenizer,
        positions: Float,
        observer: Observer | None = None,
    ) -> None:
        _check(spec, options, positions)
        self._sessions = TextKeeping(sessions) if options.cache_texts else sessions
        self._spec = spec
        self._options = options
        self._tokenizer = tokenizer
        self._observer = observer or Nobody()
        self._clip = ClipBranch(
            sessions=self._sessions,
            spec=spec.clip,
            options=options,
            tokenizer=tokenizer,
            positions=positions,
            observer=self._observer,
        )

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions; calling it twice is fine."""
        self._sessions.close()

    @property
    def options(self) -> Options:
        """What this segmenter computes."""
        return self._options

    @staged("encode")
    def encode(self, picture: str | Path | bytes | NDArray[Any]) -> Scene:
        """Do the work that needs no phrase.

        Args:
            picture: a file's path or bytes, or an array [y, x, 3] uint8 RGB.

        Raises:
            InputError: the picture cannot be used.
            EngineError: a graph failed.
        """
        image = self._read_picture(picture)
        if self._discriminates:
            self._clip.check_size(image)
        candidates = self._propose(image)
        return Scene(
            image=image,
            spec=self._spec,
            options=self._options,
            candidates=candidates,
            latent=self._encode_latent(image),
            soft=self._soft(image, candidates),
            embedding=self._embed(image),
            sessions=self._sessions,
        )

    @staged("segment")
    def segment(self, scene: Scene, phrase: str, *, focus: str | None = None) -> Segmentation:
        """Choose what `phrase` names in the scene.

        Args:
            scene: from `encode` of a segmenter with the same options.
            phrase: English, e.g. "the red mug on the left".
            focus: its head word, for a caller who knows better than the reader.

        Returns:
            The mask with everything that led to it; where nothing matches, an empty mask and the reason.

        Raises:
            InputError: the phrase cannot be used, or the scene is of other options.
            EngineError: a graph failed or returned values that are not finite.
        """
        scene.check_made_with(self._options, self._spec, self._sessions)
        return next(self._answers(scene, [self._read(phrase, focus)], UNET_ROWS))

    def segment_many(
        self, scene: Scene, phrases: Sequence[str], *, batch_size: int = UNET_ROWS
    ) -> tuple[Segmentation, ...]:
        """Choose what each phrase names in the scene: the answers of `segment`, to rounding.

        Equal phrases are computed once. All of the answers are held at once, each with its mask and map:
        `segment_each` hands them out one by one.

        Args:
            scene: as for `segment`.
            phrases: as for `segment`; none is fine.
            batch_size: most rows of a UNet call; the session's own limit holds, too. More take more memory.

        Returns:
            The answers in the order of the phrases.

        Raises:
            InputError: `batch_size` is below 1, the scene is of other options, or a phrase cannot be used:
                the message says which, and no graph has run.
            EngineError: a graph failed or returned values that are not finite.
        """
        distinct = list(dict.fromkeys(phrases))
        answers = dict(zip(distinct, self.segment_each(scene, distinct, batch_size=batch_size), strict=True))
        return tuple(answers[phrase] for phrase in phrases)

    def segment_each(
        self, scene: Scene, phrases: Sequence[str], *, batch_size: int = UNET_ROWS
    ) -> Iterator[Segmentation]:
        """As `segment_many`, one answer at a time: the graphs run as the answers are taken.

        Everything is checked in the call itself, before the first answer is asked for.
        """
        if batch_size < 1:
            raise InputError(f"got {batch_size} rows of a UNet call, expected 1 or more")
        scene.check_made_with(self._options, self._spec, self._sessions)
        return self._answers(scene, self._read_all(phrases), batch_size)

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """Refuse what `segment` would refuse; no graph runs.

        Raises:
            InputError: the first phrase that cannot be used, and why.
        """
        self._read_all(phrases)

    @property
    def _discriminates(self) -> bool:
        return self._options.mode in ("disc+seg", "full")

    @staged("picture")
    def _read_picture(self, picture: str | Path | bytes | NDArray[Any]) -> NDArray[np.uint8]:
        """The scene's own copy, read-only."""
        image = read_picture(picture).copy()
        image.setflags(write=False)
        return image

    @staged("proposals")
    def _propose(self, image: NDArray[np.uint8]) -> Candidates | None:
        """METHOD §2."""
        if self._options.mode == "gen" or self._options.proposals.peaks:
            return None
        options = self._options
        return propose(self._sessions, self._spec.sam, image, options.proposals)

    @staged("proposals")
    def _embed(self, image: NDArray[np.uint8]) -> Float | None:
        """SAM's embedding, kept for prompts that wait for a phrase; on the host, as scenes outlive runs."""
        if self._options.mode == "gen" or not self._options.proposals.peaks:
            return None
        return to_host(embed(self._sessions, self._spec.sam, image))

    @staged("proposals")
    def _prompt(self, scene: Scene, heat: Float | None) -> Scene:
        """The scene with candidates of this phrase alone, found at the peaks of its map (METHOD §10.2)."""
        if scene.embedding is None or heat is None:
            return scene
        options, spec = self._options.proposals, self._spec.sam
        prompts = map_prompts(heat, peaks=options.peaks, points_per_side=options.points_per_side)
        candidates = propose_at(prompts, self._sessions, spec, scene.embedding, scene.size_yx, options)
        soft = self._soft(scene.image, candidates)
        return replace(scene, candidates=candidates, soft=soft, hard=ByDirection())

    def _soft(self, image: NDArray[np.uint8], candidates: Candidates | None) -> Float:
        """METHOD §6; no vectors where the mode does not read them, or no phrase has prompted SAM yet."""
        if candidates is None or not self._discriminates:
            return np.zeros((0, self._spec.clip.embed_dim), dtype=np.float32)
        return self._clip.soft(image, candidates)

    @staged("latent")
    def _encode_latent(self, image: NDArray[np.uint8]) -> LatentState | None:
        """METHOD §4, what the picture alone decides."""
        if self._options.mode == "disc+seg":
            return None
        spec, options = self._spec.diffusion, self._options
        return latent_state(self._sessions, spec, options.attention, self._tokenizer, options.seed, image)

    @staged("reading")
    def _read(self, phrase: str, focus: str | None) -> Phrase:
        """METHOD §3."""
        options = self._options
        query = read_phrase(
            phrase, focus=focus, word_boundaries=options.crops.word_boundaries, reader=options.reader
        )
        self._tokenizer.check_length(query.text)
        return query

    def _read_all(self, phrases: Sequence[str]) -> list[Phrase]:
        """As `_read`; the phrase that cannot be used is named."""
        queries: list[Phrase] = []
        try:
            for phrase in phrases:
                queries.append(self._read(phrase, None))  # noqa: PERF401 - their number names the one that fails
        except InputError as error:
            number = len(queries)
            raise InputError(
                f"phrase {number + 1} of {len(phrases)}, {phrases[number]!r}: {error}"
            ) from error
        return queries

    def _answers(self, scene: Scene, queries: Sequence[Phrase], rows: int) -> Iterator[Segmentation]:
        """One answer for each phrase; text work is shared by a few phrases at a time."""
        waiting = iter(queries)
        while some := list(islice(waiting, TEXT_ROWS)):
            maps, texts = (
                self._attend(scene, some, rows),
                self._clip.texts(some) if self._discriminates else {},
            )
            for query in some:
                yield self._answer(scene, query, self._heat(scene, query, maps), texts)

    def _answer(
        self, scene: Scene, query: Phrase, heat: Float | None, texts: Mapping[str, Float]
    ) -> Segmentation:
        scene = self._prompt(scene, heat)
        if scene.candidates is None:
            return self._segment_map(query, heat)
        parts = self._cues(scene, scene.candidates, query, heat, texts)
        return self._choose(scene.candidates, query, heat, parts)

    def _attend(self, scene: Scene, queries: Sequence[Phrase], rows: int) -> Iterator[Float | None]:
        """The attention maps of each phrase (METHOD §4); the UNet runs as they are taken."""
        if scene.latent is None:
            return iter([None] * len(queries))
        options, spec = self._options, self._spec.diffusion
        return attend_each(
            self._sessions,
            spec,
            options.attention,
            self._tokenizer,
            scene.latent,
            queries,
            rows,
        )

    @staged("attention")
    def _heat(self, scene: Scene, query: Phrase, maps: Iterator[Float | None]) -> Float | None:
        """The generative map c [y, x] of the next maps (METHOD §4.6, §10.4)."""
        of_query = next(maps)
        if of_query is None:
            return None
        heat = heat_map(of_query, scene.size_yx, uint8_lanczos=self._options.attention.uint8_lanczos)
        return heat * heat_ramp(query, scene.size_yx) if self._options.fusion.ramp_on_heat else heat

    @staged("scoring")
    def _segment_map(self, query: Phrase, heat: Float | None) -> Segmentation:
        """Mode `gen`: the map's level sets are the candidates (METHOD §8)."""
        if heat is None:
            raise InputError(
                "a scene without candidates and without a latent cannot be segmented; encode it anew"
            )
        levels = level_sets(heat)
        scores = score_level_sets(heat, levels, self._options.fusion)
        return conclude(query, heat, levels, scores, "the attention map is flat")

    @staged("scoring")
    def _cues(
        self,
        scene: Scene,
        candidates: Candidates,
        query: Phrase,
        heat: Float | None,
        texts: Mapping[str, Float],
    ) -> dict[str, Float]:
        """The parts of the score, each [n]."""
        parts: dict[str, Float] = {}
        if heat is not None:
            balance = self._options.fusion.contrast_balance
            parts["generative"] = attention_contrast(heat, candidates.masks, balance)
        if self._discriminates:
            parts |= self._clip.cues(scene, candidates, query, texts)
        return parts

    @staged("scoring")
    def _choose(
        self, candidates: Candidates, query: Phrase, heat: Float | None, parts: dict[str, Float]
    ) -> Segmentation:
        """METHOD §7."""
        options, drop_filtered = self._options, self._options.proposals.drop_filtered
        scores = fuse(options.fusion, options.mode, parts, candidates.kept, drop_filtered=drop_filtered)
        return conclude(query, heat, candidates, scores, "no proposal passes the filters")


def _check(spec: ModelSpec, options: Options, positions: Float) -> None:
    if options.attention.softmax or options.crops.ramp_on_soft:
        raise InputError(
            f"variant {options.variant!r} follows the paper's text: it reads per-head softmax maps, which no"
            " exported graph has, and ramps the masked attention, which the runtime leaves out;"
            " use --variant official or edge, or the torch reference"
        )
    if options.proposals.peaks and options.mode == "disc+seg":
        raise InputError(
            "mode 'disc+seg' has no map with peaks to prompt SAM at; take another mode, or set peaks to 0"
        )
    expected = (spec.clip.grid**2, spec.clip.width)
    if positions.shape != expected:
        raise InputError(
            f"CLIP's position table has shape {positions.shape}, expected {expected} for {spec.name};"
            " take table and spec from one bundle"
        )
