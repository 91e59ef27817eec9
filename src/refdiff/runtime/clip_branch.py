"""What CLIP says of the candidates, and where they lie (METHOD §5, §6, §10.4 to §10.7).

In: a scene's picture and candidates, a read phrase. Out: the discriminative parts of the score.

Axes: n = candidates, e = CLIP embedding, y/x = picture rows/columns, g = CLIP's training grid, w = its token
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float, SessionFactory
from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.crops import shrunk_size
from refdiff.runtime.discriminative import hard_vectors, soft_vectors, text_vectors
from refdiff.runtime.patches import patch_grid
from refdiff.runtime.phrase import Phrase, direction
from refdiff.runtime.places import Direction, place_scores
from refdiff.runtime.scene import Scene
from refdiff.runtime.stages import Observer, staged
from refdiff.runtime.tokenizer import Tokenizer


class ClipBranch:
    """Both of CLIP's views of the candidates, over the graphs `clip_text` and `clip_image`.

    Args:
        sessions: opens the graphs.
        spec: CLIP's sizes.
        options: of the segmenter.
        tokenizer: of the bundle.
        positions: [g*g, w], the position table without the class token's row.
        observer: told of every stage.
    """

    def __init__(
        self,
        *,
        sessions: SessionFactory,
        spec: ClipSpec,
        options: Options,
        tokenizer: Tokenizer,
        positions: Float,
        observer: Observer,
    ) -> None:
        self._sessions = sessions
        self._spec = spec
        self._options = options
        self._tokenizer = tokenizer
        self._positions = positions
        self._observer = observer

    def check_size(self, image: NDArray[np.uint8]) -> None:
        """Refuse a picture [y, x, 3] that the masked attention cannot see, before anything is computed.

        Raises:
            InputError: it has no CLIP patch, or too many.
        """
        patch = self._spec.patch_size
        patch_grid(shrunk_size(image.shape[:2], self._options.crops.soft_long_side, least=patch), patch)

    @staged("soft")
    def soft(self, image: NDArray[np.uint8], candidates: Candidates) -> Float:
        """Masked-attention vectors [n, e] (METHOD §6)."""
        options = self._options
        return soft_vectors(
            self._sessions, self._spec, self._positions, image, candidates, options.crops, options.shortcuts
        )

    @staged("text")
    def texts(self, queries: Sequence[Phrase]) -> Mapping[str, Float]:
        """The vector [e] of every text of these phrases, each computed once (METHOD §3)."""
        texts = list(dict.fromkeys(text for query in queries for text in self._texts_of(query)))
        safe = max(len(self._texts_of(query)) for query in queries)
        return dict(zip(texts, text_vectors(self._sessions, self._tokenizer, texts, safe), strict=True))

    def cues(
        self, scene: Scene, candidates: Candidates, query: Phrase, texts: Mapping[str, Float]
    ) -> dict[str, Float]:
        """The parts of the score that CLIP and the candidates' places decide, each [n]."""
        crops = self._options.crops
        side = direction(query.text, word_boundaries=crops.word_boundaries)
        hard = self._hard(scene, candidates, side)
        whole, root, *others = (texts[text] for text in self._texts_of(query))
        unlike = crops.negative * np.mean(others, axis=0) if crops.negative and others else 0.0
        shares = (crops.hard_root_weight, crops.soft_root_weight)
        hard_text, soft_text = ((1 - share) * whole + share * root - unlike for share in shares)
        parts = {"hard": _cosines(hard, hard_text), "soft": _cosines(scene.soft, soft_text)}
        if self._options.fusion.place:
            similar = _cosines(hard, others[0]) if query.relation is not None else None
            parts["place"] = _places(query, candidates, scene.size_yx, similar)
        return parts

    def _texts_of(self, query: Phrase) -> list[str]:
        """What CLIP is asked: the phrase, its head word, and what it is compared with."""
        related = query.relation is not None and bool(self._options.fusion.place)
        named = query.others if self._options.crops.negative else query.others[:1] if related else ()
        return [query.text, query.root, *named]

    @staged("crops")
    def _hard(self, scene: Scene, candidates: Candidates, side: Direction) -> Float:
        """Crop vectors [n, e] under the side's ramp (METHOD §5); kept in the scene."""
        options = self._options

        def vectors(to: Direction) -> Float:
            return hard_vectors(
                self._sessions,
                self._spec,
                self._positions,
                scene.image,
                candidates,
                options.crops,
                to,
                options.shortcuts,
            )

        return scene.hard.towards(side, vectors)


def _cosines(vectors: Float, text: NDArray[Any]) -> Float:
    """[n, e] and [e] to [n]; a matrix product would wake the linear algebra library (see `interpolation`)."""
    return np.asarray(np.einsum("ne,e->n", vectors, text), np.float32)


def _places(
    query: Phrase, candidates: Candidates, size_yx: tuple[int, int], other_similarity: Float | None
) -> Float:
    """Place scores [n] among the kept candidates, so that what was filtered out is nobody's neighbour."""
    kept = candidates.kept
    scores = np.zeros(len(candidates), dtype=np.float32)
    if kept.any():
        similar = None if other_similarity is None else other_similarity[kept]
        scores[kept] = place_scores(
            query, candidates.boxes_xyxy_px[kept], candidates.areas_px[kept], size_yx, similar
        )
    return scores
