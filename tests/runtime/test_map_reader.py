"""What is read from the logits of the passes, and how it becomes a heatmap."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from refdiff.contracts.options import VARIANTS, AttentionOptions, Options
from refdiff.contracts.session import Float
from refdiff.contracts.spec import DiffusionSpec
from refdiff.errors import InputError
from refdiff.runtime.diffusion import affinity, heatmap_on_image
from refdiff.runtime.map_reader import AttentionLogits, MapReader
from refdiff.runtime.phrase import Phrase
from tests.support.letter_tokenizer import letter_tokenizer

SPEC = DiffusionSpec(
    image_size=32,
    vae_factor=4,
    latent_channels=4,
    scaling_factor=0.18215,
    context_width=6,
    tapped_layers=("a", "b", "c"),
    tap_size=2,
    cut_after="b",
    maps=("coarse", "self"),
)
LENGTH, SIZE_YX = 9, (20, 31)
EDGE = VARIANTS["edge"].attention
TOKENIZER = letter_tokenizer(LENGTH)
PHRASE = Phrase(text="red b on c", root="b", root_end=5, others=("c",))  # pieces: red, b, o, n, c
LOGITS = np.random.default_rng(2).normal(0, 3, (2, 3, 4, LENGTH)).astype(np.float32)  # [p, l, q, t]


def _reader(options: AttentionOptions, spec: DiffusionSpec = SPEC) -> MapReader:
    return MapReader(Options(attention=options), spec, TOKENIZER)


def _maps(options: AttentionOptions, phrase: Phrase, logits: Float, **others: Float) -> Float:
    return _reader(options).maps(AttentionLogits(taps=logits, **others), phrase)


def _scaled(maps: Float) -> Float:
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return np.asarray((maps - low) / (high - low))


def test_a_rescaled_map_is_the_named_things_share_among_the_content_tokens() -> None:
    chance = np.exp(LOGITS.astype(np.float64).reshape(6, 4, LENGTH))
    own, other = chance[:, :, 1] + chance[:, :, 2], chance[:, :, 5]  # the preposition does not compete
    wanted = _scaled((own / (own + other)).reshape(6, 2, 2))
    got = _maps(dataclasses.replace(EDGE, rescale=True), PHRASE, LOGITS)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("others", [(), ("red b on c",)])
def test_a_phrase_without_competing_tokens_keeps_its_plain_map(others: tuple[str, ...]) -> None:
    alone = dataclasses.replace(PHRASE, others=others, root_end=0)
    plain = _maps(EDGE, alone, LOGITS)
    np.testing.assert_array_equal(_maps(dataclasses.replace(EDGE, rescale=True), alone, LOGITS), plain)
    assert plain.any()


def test_the_end_tokens_map_is_added_with_its_weight() -> None:
    columns = LOGITS.reshape(6, 4, LENGTH)
    read, end = (_scaled(columns[:, :, k].reshape(6, 2, 2)) for k in (5, 7))  # red, b, o, n, c, ",", end
    got = _maps(dataclasses.replace(EDGE, end_token=0.5), PHRASE, LOGITS)
    np.testing.assert_allclose(got, _scaled(read + 0.5 * end), atol=1e-5)


def test_layer_weights_weigh_the_layers_of_every_pass() -> None:
    def heat(weights: tuple[float, ...], logits: Float) -> Float:
        options, layers = dataclasses.replace(EDGE, layer_weights=weights), SPEC.tapped_layers
        spec = dataclasses.replace(SPEC, tapped_layers=layers[: logits.shape[1]])
        return _reader(options, spec).heatmap(AttentionLogits(taps=logits), SIZE_YX, PHRASE)

    middle = heat((), LOGITS[:, 1:2])
    assert np.abs(heat((), LOGITS) - middle).max() > 0.05
    np.testing.assert_allclose(heat((0, 2, 0), LOGITS), middle, atol=1e-6)
    np.testing.assert_allclose(heat((3, 3, 3), LOGITS), heat((), LOGITS), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_weights": (1.0, 1.0)},
        {"layer_weights": (0.0, 0.0, 0.0)},
        {"layer_weights": (1.0, -1.0, 2.0)},
        {"layer_weights": (1.0, math.nan, 2.0)},
        {"end_token": -0.5},
        {"end_token": math.inf},
        {"coarse": -1.0},
        {"coarse": math.nan},
        {"propagate": -1},
    ],
)
def test_weights_that_mean_nothing_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        _reader(dataclasses.replace(EDGE, **changes))  # type: ignore[arg-type]


WIDE = dataclasses.replace(SPEC, tap_size=4)
COARSE = np.random.default_rng(3).normal(0, 3, (2, 1, 4, LENGTH)).astype(np.float32)  # [p, 1, q / 4, t]
FINE = np.random.default_rng(4).normal(0, 3, (2, 3, 16, LENGTH)).astype(np.float32)  # [p, l, q, t]
SELF = np.random.default_rng(5).normal(0, 3, (2, 3, 16, 16)).astype(np.float32)  # [p, l, q, q]


def test_the_coarsest_levels_map_is_resized_to_the_taps_grid_and_weighed_in_the_mean() -> None:
    options = dataclasses.replace(EDGE, coarse=3.0)
    logits = AttentionLogits(taps=FINE, coarse=COARSE)
    maps = _reader(options, WIDE).maps(logits, PHRASE)
    assert maps.shape == (8, 4, 4)
    plain = _reader(EDGE, WIDE).maps(logits, PHRASE)
    np.testing.assert_array_equal(maps[:6], plain)
    column = COARSE[:, 0, :, 5].reshape(2, 2, 2)
    # Bilinear, cells by their centers: the inner ones are 3:1 mixes, the outer ones are cut at the border.
    mix = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(maps[6:], _scaled(np.einsum("yi,mij,xj->myx", mix, column, mix)), atol=1e-5)
    mean = (maps[:6].sum(axis=0) + 3 * maps[6:].sum(axis=0)) / (6 + 2 * 3)
    wanted = heatmap_on_image(mean, SIZE_YX, uint8_lanczos=False)
    np.testing.assert_allclose(_reader(options, WIDE).heatmap(logits, SIZE_YX, PHRASE), wanted, atol=1e-5)


def test_the_mean_map_is_multiplied_by_the_mean_of_the_layers_softmaxes() -> None:
    chance = np.exp(SELF.astype(np.float64).reshape(6, 16, 16))
    cells = (chance / chance.sum(axis=2, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(affinity(SELF), cells, atol=1e-6)
    logits = AttentionLogits(taps=FINE, itself=SELF)
    mean = _reader(EDGE, WIDE).maps(logits, PHRASE).mean(axis=0)
    for times in (1, 2):
        moved = (np.linalg.matrix_power(cells, times) @ mean.reshape(-1)).reshape(1, 4, 4)
        wanted = heatmap_on_image(_scaled(moved)[0], SIZE_YX, uint8_lanczos=False)
        reader = _reader(dataclasses.replace(EDGE, propagate=times), WIDE)
        np.testing.assert_allclose(reader.heatmap(logits, SIZE_YX, PHRASE), wanted, atol=1e-5)


def test_outputs_that_no_option_reads_change_nothing() -> None:
    plain = _reader(EDGE, WIDE).heatmap(AttentionLogits(taps=FINE), SIZE_YX, PHRASE)
    more = AttentionLogits(taps=FINE, coarse=COARSE, itself=SELF)
    np.testing.assert_array_equal(_reader(EDGE, WIDE).heatmap(more, SIZE_YX, PHRASE), plain)


@pytest.mark.parametrize(("change", "name"), [({"coarse": 1.0}, "coarse"), ({"propagate": 2}, "self")])
def test_a_reading_of_what_the_graphs_lack_names_the_export(change: dict[str, Any], name: str) -> None:
    spec = dataclasses.replace(SPEC, maps=tuple({"coarse", "self"} - {name}))
    with pytest.raises(InputError, match=f"refdiff export MODEL --maps {name}$"):
        _reader(dataclasses.replace(EDGE, **change), spec)
