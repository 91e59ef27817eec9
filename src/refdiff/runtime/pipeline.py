"""Ref-Diff on engines: an image and a phrase in, a mask out. Read it next to docs/method.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from refdiff.contracts.confidence import ConfidenceModel
from refdiff.contracts.options import Options
from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.session import Feed, Float, SessionFactory
from refdiff.contracts.spec import ModelSpec
from refdiff.errors import InputError
from refdiff.runtime.attention_branch import AttentionBranch
from refdiff.runtime.batching import UNET_ROWS
from refdiff.runtime.clip_branch import ClipBranch, Texts
from refdiff.runtime.clip_tower import GraphReader
from refdiff.runtime.confidence import ConfidenceJudge, Probe
from refdiff.runtime.encoded_image import EncodedImage, Origin
from refdiff.runtime.image import ImageLike, read_only_copy
from refdiff.runtime.observer import NullObserver, Observer, observed
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.prompt import read_logits, read_prompt
from refdiff.runtime.proposals import proposer_for
from refdiff.runtime.query import QueryParser, list_phrases
from refdiff.runtime.refinement import Refinement, Refiner
from refdiff.runtime.scoring import fuse, heatmap_scores, select
from refdiff.runtime.segmentation import Segmentation
from refdiff.runtime.text_cache import CachedTextSessions
from refdiff.runtime.tokenizer import Tokenizer


class Segmenter:
    """Segments what a phrase names, with one bundle's graphs. It owns the sessions: use it in a `with` block.

    Args:
        sessions: opens the graphs; closed with the segmenter.
        spec: the models' sizes.
        options: a variant, possibly changed.
        tokenizer: of the bundle.
        positions: [g*g, w], CLIP's position table (g patches a side, width w) without the class token's row.
        prompts: the vectors of SAM's prompt encoder.
        cautions: of the bundle, part of every answer.
        confidence: fitted for these options; None: answers have no confidence.
        probe: called with the evidence of every answer, to fit a confidence.
        observer: notified of every stage.
        read_graph: reads a graph's file, for images that no engine takes (METHOD §9); None: such images and
            crops are made smaller, and the answer says so.

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
        prompts: PromptVectors,
        cautions: tuple[str, ...] = (),
        confidence: ConfidenceModel | None = None,
        probe: Probe | None = None,
        observer: Observer | None = None,
        read_graph: GraphReader | None = None,
    ) -> None:
        self._observer = observer = observer or NullObserver()
        self._sessions = sessions = CachedTextSessions(sessions) if options.cache_texts else sessions
        self._cautions, self._closed = cautions, False
        self._origin = Origin(options=options, spec=spec, sessions=sessions)
        self._parser = QueryParser(options, tokenizer, observer)
        self._proposer = proposer_for(sessions, spec.sam, prompts, options, observer)
        self._refiner = Refiner(sessions, spec.sam, prompts)
        self._attention = AttentionBranch(sessions, spec.diffusion, options, tokenizer, observer)
        self._clip = ClipBranch(sessions, spec.clip, options, tokenizer, positions, observer, read_graph)
        self._judge = ConfidenceJudge(self._clip, confidence, options.min_confidence, probe)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions; calling it twice is fine, using the segmenter afterwards is an error."""
        self._closed = True
        self._sessions.close()

    @property
    def options(self) -> Options:
        """The options of this segmenter."""
        return self._origin.options

    @observed("encode")
    def encode(self, image: ImageLike) -> EncodedImage:
        """Do the work that needs no phrase.

        Args:
            image: a path, bytes, a binary file object, a Pillow image, or an array [y, x], [y, x, 3] RGB or
                [y, x, 4] RGBA of uint8 or of floats in 0..1. OpenCV's BGR is not recognized: reverse
                its last axis.

        Raises:
            InputError: the image cannot be used, or the segmenter is closed.
            EngineError: a graph failed or returned values that are not finite.
        """
        self._check_open()
        with self._observer.stage("picture"):
            pixels = read_only_copy(image)
        self._clip.check_size(pixels)
        proposals = self._proposer.encode(pixels)  # METHOD §2
        latent = self._attention.encode(pixels)  # METHOD §4.1 to §4.3
        views = self._clip.encode(pixels, proposals.candidates)  # METHOD §6
        return EncodedImage(pixels, proposals, latent, views, self._origin)

    @observed("segment")
    def segment(
        self, image: EncodedImage | ImageLike, phrase: str, *, focus: str | None = None
    ) -> Segmentation:
        """Choose the candidate that fits `phrase` best; that nothing fits is not detected.

        Args:
            image: from `encode` of a segmenter with the same options, or what `encode` takes.
            phrase: English, e.g. "the red mug on the left".
            focus: its head word, where the caller knows it better than the parser.

        Returns:
            The mask with everything that led to it; an empty one and the reason if there is no candidate.

        Raises:
            InputError: the image or the phrase cannot be used, the image was encoded with other options, or
                the segmenter is closed.
            EngineError: a graph failed or returned values that are not finite.
        """
        query = self._parser.parse(phrase, focus)  # METHOD §3
        image = self._encoded(image)
        texts = self._clip.encode_text(query)  # METHOD §3
        heatmap = self._attention.heatmap(image.latent, query)  # METHOD §4
        return self._choose(image, query, texts, heatmap)  # METHOD §2, §5 to §8

    def _choose(
        self, image: EncodedImage, query: Phrase, texts: Texts, heatmap: Float | None
    ) -> Segmentation:
        """Choose by what the two branches say of the query; `segment` and `segment_each` end here."""
        self._check_open()  # between two answers of `segment_each`
        candidates = self._proposer.candidates(image.proposals, heatmap)  # METHOD §2, §8, §10.2
        views = image.views or self._clip.encode(image.pixels, candidates)  # METHOD §6
        with self._observer.stage("scoring"):
            parts = heatmap_scores(self.options, heatmap, candidates)  # METHOD §7
            parts |= self._clip.scores(views, query, texts)  # METHOD §5, §6, §10.4
            scores = fuse(self.options, parts, candidates.kept)  # METHOD §7
            answer = select(candidates, scores, query, heatmap, empty_reason=self._proposer.empty_reason)
            answer = self._judge.judge(answer, query, views, texts)
        cautions = (*self._cautions, *answer.cautions, *self._clip.cautions(views))
        return replace(answer, image=image.pixels, cautions=cautions)

    def segment_many(
        self,
        image: EncodedImage | ImageLike,
        phrases: str | Iterable[str],
        *,
        batch_size: int = UNET_ROWS,
    ) -> tuple[Segmentation, ...]:
        """Return the answers of `segment_each` at once, in the order of the phrases; equal ones run once."""
        phrases = list_phrases(phrases)
        distinct = list(dict.fromkeys(phrases))
        answers = dict(zip(distinct, self.segment_each(image, distinct, batch_size=batch_size), strict=True))
        return tuple(answers[phrase] for phrase in phrases)

    def segment_each(
        self,
        image: EncodedImage | ImageLike,
        phrases: str | Iterable[str],
        *,
        batch_size: int = UNET_ROWS,
    ) -> Iterator[Segmentation]:
        """Yield the answer of `segment` to each phrase, to rounding; the graphs run as they are taken.

        Args:
            image: as for `segment`.
            phrases: as for `segment`; a text alone is one phrase, and none is fine.
            batch_size: most rows of a UNet call; the session's own limit holds, too. More take more memory.

        Raises:
            InputError: as for `segment`, or `batch_size` is below 1; by the call, before any graph runs.
            EngineError: as for `segment`.
        """
        if batch_size < 1:
            raise InputError(f"got {batch_size} rows of a UNet call, expected 1 or more")
        queries = self._parser.parse_all(list_phrases(phrases))
        encoded = self._encoded(image)
        texts = self._clip.encode_texts(queries)
        heatmaps = self._attention.heatmaps(encoded.latent, queries, batch_size=batch_size)
        return (self._choose(encoded, *each) for each in zip(queries, texts, heatmaps, strict=True))

    def refine(
        self,
        image: EncodedImage | ImageLike,
        *,
        box: Sequence[float] | None = None,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] | None = None,
        mask: Float | None = None,
    ) -> Refinement:
        """Segment what a box or points show, without a phrase; only SAM runs.

        Args:
            image: from `encode`, whose embedding is used again, or what `encode` takes.
            box: x0, y0, x1, y1 in px with its end excluded, such as the `box` of an answer.
            points: (x, y) in px, 14 with a box and 15 without.
            labels: for each point 1 if it is on the thing, 0 if it is not; None: all are on it.
            mask: [l, l], the `logits` of an earlier answer of `refine` on this image.

        Raises:
            InputError: the image cannot be used, the prompt names no place on the thing or one outside of the
                image, the mask is no logits, or the segmenter is closed.
            EngineError: a graph failed or returned values that are not finite.
        """
        self._check_open()
        embedding: Feed | None = None
        if isinstance(image, EncodedImage):
            image.check_origin(self._origin)
            pixels, embedding = image.pixels, image.proposals.embedding
        else:
            pixels = read_only_copy(image)
        prompt = read_prompt((pixels.shape[0], pixels.shape[1]), box, points, labels)
        logits = None if mask is None else read_logits(mask, self._origin.spec.sam.low_res_size)
        found = self._refiner.refine(pixels, prompt, logits, embedding)
        return replace(found, cautions=(*self._cautions, *found.cautions))

    def text_vectors(self, texts: Sequence[str]) -> Float:
        """Return CLIP's unit vectors [k, e] of plain texts."""
        self._check_open()
        return self._clip.text_vectors(texts)

    def check_phrases(self, phrases: str | Iterable[str]) -> None:
        """Raise InputError for the first phrase that `segment` would refuse, without running a graph."""
        self._parser.parse_all(list_phrases(phrases))

    def _encoded(self, image: EncodedImage | ImageLike) -> EncodedImage:
        """Return an image that was encoded with this segmenter; encode it if it is none yet."""
        self._check_open()
        if not isinstance(image, EncodedImage):
            return self.encode(image)
        image.check_origin(self._origin)
        return image

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(
                "the segmenter is closed; use it inside its `with` block, or load the bundle again"
            )
