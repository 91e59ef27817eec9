"""The prompt encoder in numpy is segment_anything's, for every kind of prompt."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segment_anything.modeling import PromptEncoder

from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.runtime.prompt import (
    FIRST_CORNER,
    LAST_CORNER,
    NEGATIVE,
    NOT_A_POINT,
    POSITIVE,
    mask_embedding,
    place_tokens,
    point_tokens,
)

pytestmark = pytest.mark.needs_torch

SIDE, CHANNELS, CELLS = 1024, 256, 64


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    made = PromptEncoder(
        embed_dim=CHANNELS,
        image_embedding_size=(CELLS, CELLS),
        input_image_size=(SIDE, SIDE),
        mask_in_chans=16,
    ).eval()
    with torch.no_grad():
        for name, weights in made.mask_downscaling.named_parameters():  # also the norms', which begin as 1, 0
            weights.normal_(mean=float(name.startswith(("1.", "4.")) and name.endswith("weight")), std=0.3)
    return made


@pytest.fixture(scope="module")
def vectors(encoder: PromptEncoder) -> PromptVectors:
    from types import SimpleNamespace

    from refdiff.export.sam_graphs import prompt_vectors

    return prompt_vectors(SimpleNamespace(prompt_encoder=encoder))


def theirs(encoder: PromptEncoder, places: np.ndarray, labels: np.ndarray, boxes: np.ndarray | None):
    points = None if places is None else (torch.from_numpy(places), torch.from_numpy(labels))
    given = None if boxes is None else torch.from_numpy(boxes)
    with torch.no_grad():
        sparse, _ = encoder(points=points, boxes=given, masks=None)
    return sparse.numpy()


def drawn_places(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0, SIDE, (*shape, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("labels", "boxed"),
    [
        *(([1], False), ([1, 1, 1], False), ([1, 0], False), ([0, 1, 0, 0], False), ([1, -1], False)),
        *(([], True), ([1], True), ([0, 1], True)),
    ],
)
@pytest.mark.parametrize(("prompts", "error"), [(16, 1e-6), (1, 3e-6)])
def test_tokens_of_points_and_boxes_equal_theirs(
    encoder: PromptEncoder,
    vectors: PromptVectors,
    labels: list[int],
    boxed: bool,
    prompts: int,
    error: float,
) -> None:
    # torch adds up the products of one or two places in another order, which moves its own sines by 2e-6.
    given = np.tile(np.array(labels, np.int32), (prompts, 1))
    places, boxes = drawn_places(prompts, len(labels)), drawn_places(prompts, 2)
    expected = theirs(encoder, places if labels else None, given, boxes.reshape(-1, 4) if boxed else None)
    every = np.concatenate([places, boxes if boxed else np.zeros((prompts, 1, 2), np.float32)], axis=1)
    kinds = [*labels, FIRST_CORNER, LAST_CORNER] if boxed else [*labels, NOT_A_POINT]
    got = place_tokens(vectors, every, np.tile(np.array(kinds), (prompts, 1)))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=error, rtol=0)


def test_tokens_of_the_automatic_modes_points_equal_theirs(
    encoder: PromptEncoder, vectors: PromptVectors
) -> None:
    points = drawn_places(64)
    expected = theirs(encoder, points[:, None], np.ones((64, 1), np.int32), None)
    np.testing.assert_allclose(point_tokens(vectors, points), expected, atol=1e-6, rtol=0)


def test_the_embedding_of_a_mask_equals_theirs(encoder: PromptEncoder, vectors: PromptVectors) -> None:
    logits = np.random.default_rng(1).normal(scale=8, size=(4 * CELLS, 4 * CELLS)).astype(np.float32)
    with torch.no_grad():
        expected = encoder.mask_downscaling(torch.from_numpy(logits)[None, None]).numpy()
    got = mask_embedding(vectors, logits)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_labels_are_those_of_segment_anything() -> None:
    assert (NOT_A_POINT, NEGATIVE, POSITIVE, FIRST_CORNER, LAST_CORNER) == (-1, 0, 1, 2, 3)
