"""The diffusion branch over fake graphs: what is fed to which graph, how often, and what is made of it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.options import VARIANTS, AttentionOptions, Options
from refdiff.contracts.session import Array, Float
from refdiff.contracts.spec import DiffusionSpec
from refdiff.errors import EngineError, InputError
from refdiff.runtime.attention_branch import AttentionBranch
from refdiff.runtime.diffusion import alphas_cumprod, draw_noise
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.resize import diffusion_input
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
)
LENGTH, LATENT = 9, (1, 4, 8, 8)
OFFICIAL, EDGE = VARIANTS["official"].attention, VARIANTS["edge"].attention
ONE_GUIDED_PASS = dataclasses.replace(EDGE, guidance=9.0)
IMAGE = np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8)
TOKENIZER = letter_tokenizer(LENGTH)


def _mixed(count: int, *sources: Array) -> Float:
    """`count` numbers per batch row, which every number of that row of each source changes."""
    rows = np.concatenate([source.reshape(len(source), -1) for source in sources], axis=1).astype(np.float64)
    weights = np.random.default_rng(count).standard_normal((rows.shape[1], count)) / math.sqrt(rows.shape[1])
    return np.sin(rows @ weights).astype(np.float32)


def _taps(latent: Array, timestep: Array, context: Array) -> Float:
    return _mixed(3 * 4 * LENGTH, latent, timestep[:, None] / 100, context).reshape(-1, 3, 4, LENGTH)


def _eps(latent: Array, timestep: Array, context: Array) -> Float:
    return _mixed(256, latent, timestep[:, None] / 100, context).reshape(-1, *LATENT[1:])


def _context(ids: Array) -> Float:
    return _mixed(LENGTH * 6, ids / 100).reshape(-1, LENGTH, 6)


def _moments(image: Array) -> Float:
    return _mixed(512, image).reshape(1, 8, 8, 8)


class FakeGraphs:
    """Sessions of numpy functions that note what they were fed."""

    def __init__(self, *, broken: str | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Array]]] = []
        self.broken = broken

    def open(self, name: str) -> "FakeSession":
        return FakeSession(name, self)

    def close(self) -> None:
        """Nothing is held."""

    def batches(self) -> list[tuple[str, int]]:
        return [(name, len(next(iter(feeds.values())))) for name, feeds in self.calls]


class FakeSession:
    def __init__(self, name: str, graphs: FakeGraphs) -> None:
        self.graph = GraphSpec(name, (), ())
        self.max_batch = None
        self._graphs = graphs

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self._graphs.calls.append((self.graph.name, dict(feeds)))
        results = {
            "sd_text": lambda: {"context": _context(**feeds)},
            "vae_encoder": lambda: {"moments": _moments(**feeds)},
            "unet": lambda: {"eps": _eps(**feeds), "taps": _taps(**feeds)},
            "unet_taps": lambda: {"taps": _taps(**feeds)},
        }[self.graph.name]()
        if self._graphs.broken == self.graph.name:
            next(iter(results.values())).flat[0] = np.nan
        return results

    def close(self) -> None:
        """Nothing is held."""


def _branch(
    graphs: FakeGraphs, options: AttentionOptions, spec: DiffusionSpec = SPEC, seed: int = 3
) -> AttentionBranch:
    return AttentionBranch(graphs, spec, Options(attention=options, seed=seed), TOKENIZER)


def _maps(branch: AttentionBranch, text: str) -> Float:
    """Return the maps of one phrase on the image."""
    latent = branch.encode(IMAGE)
    assert latent is not None
    phrase = parse_phrase(text)
    (logits,) = branch.logits(latent, [phrase])
    return branch.reader.maps(logits, phrase)


def _clean(options: AttentionOptions, seed: int) -> Float:
    """Return the clean latent: what is left of the noised one without its noise."""
    latent = _branch(FakeGraphs(), options, seed=seed).encode(IMAGE)
    assert latent is not None
    assert latent.noised.dtype == np.float32
    level = alphas_cumprod(SPEC)[options.start_level]
    return (latent.noised - math.sqrt(1 - level) * draw_noise(seed, LATENT)[1]) / math.sqrt(level)


def test_the_latent_is_a_seeded_sample_of_the_posterior() -> None:
    moments = _moments(diffusion_input(IMAGE, 32))
    wanted = 0.18215 * (moments[:, :4] + np.exp(moments[:, 4:] / 2) * draw_noise(3, LATENT)[0])
    np.testing.assert_allclose(_clean(OFFICIAL, 3), wanted, atol=1e-6)


def test_the_edge_latent_is_the_posterior_mean_whatever_the_seed() -> None:
    mean = 0.18215 * _moments(diffusion_input(IMAGE, 32))[:, :4]
    for seed in (0, 1):
        np.testing.assert_allclose(_clean(EDGE, seed), mean, atol=1e-6)


def test_the_released_two_passes_are_those_of_the_method() -> None:
    graphs = FakeGraphs()
    maps = _maps(_branch(graphs, OFFICIAL), "a red mug")

    # METHOD §4.2 to §4.5, both branches in one batch, with its printed numbers.
    posterior, noise = draw_noise(3, LATENT)
    moments = _moments(diffusion_input(IMAGE, 32))
    clean = 0.18215 * (moments[:, :4] + np.exp(moments[:, 4:] / 2) * posterior)
    contexts = _context(np.stack([TOKENIZER.diffusion_ids(text) for text in ("", "a red mug, ")]))
    x = np.repeat(0.944976 * clean + 0.327138 * noise, 2, axis=0)
    timestep = np.full(2, 51, np.float32)
    unconditional, conditional = _eps(x, timestep, contexts)
    e = unconditional + 9 * (conditional - unconditional)
    x0 = (x[:1] - 0.222431 * e) / 0.974948
    following = np.repeat(0.999148 * x0 + 0.041279 * e, 2, axis=0)
    k = 5  # start, a, red, m, u, g: "mug" is three pieces
    both = (_taps(x, timestep, contexts), _taps(following, np.ones(2, np.float32), contexts))
    columns = np.concatenate([9 * taps[1] - 8 * taps[0] for taps in both])[:, :, k]
    wanted = [(column - column.min()) / (column.max() - column.min()) for column in columns]
    assert maps.shape == (6, 2, 2)
    np.testing.assert_allclose(maps.reshape(6, 4), wanted, atol=2e-3)


def test_a_predicted_velocity_is_turned_into_the_noise_it_means() -> None:
    spec = dataclasses.replace(SPEC, prediction="v_prediction", padding="zero")
    graphs = FakeGraphs()
    _maps(_branch(graphs, OFFICIAL, spec), "a red mug")

    # The first pass by the method's numbers: the UNet is given the level of 0.974948 and 0.222431.
    (_, first), (_, conditional) = (call for call in graphs.calls if call[0] == "unet")
    v_u, v_c = (_eps(**feeds) for feeds in (first, conditional))
    v = v_u + 9 * (v_c - v_u)
    x = first["latent"]
    e = 0.974948 * v + 0.222431 * x
    x0 = 0.974948 * x - 0.222431 * v  # the same velocity, solved for the picture
    following = np.repeat(0.999148 * x0 + 0.041279 * e, 2, axis=0)
    (_, last) = next(call for call in graphs.calls if call[0] == "unet_taps")
    np.testing.assert_allclose(last["latent"], following, atol=1e-4)


def test_prompts_are_padded_as_the_spec_says() -> None:
    for padding in ("end", "zero"):
        graphs = FakeGraphs()
        spec = dataclasses.replace(SPEC, padding=padding)
        _maps(_branch(graphs, OFFICIAL, spec), "red mug")
        fed = [feeds["ids"][0].tolist() for name, feeds in graphs.calls if name == "sd_text"]
        wanted = (TOKENIZER.diffusion_ids(text, padding).tolist() for text in ("", "red mug, "))
        assert fed == list(wanted)
        assert (fed[0][-1] == 0) == (padding == "zero")


def test_a_second_phrase_reuses_the_image_and_the_unconditional_first_pass() -> None:
    graphs = FakeGraphs()
    branch = _branch(graphs, OFFICIAL)
    latent = branch.encode(IMAGE)
    assert graphs.batches() == [("vae_encoder", 1), ("sd_text", 1), ("unet", 1)]
    for text in ("red mug", "mug"):
        graphs.calls.clear()
        branch.heatmap(latent, parse_phrase(text))
        assert graphs.batches() == [("sd_text", 1), ("unet", 1), ("unet_taps", 2)]


def test_one_pass_costs_a_phrase_one_early_exit_and_never_the_full_unet() -> None:
    graphs = FakeGraphs()
    branch = _branch(graphs, ONE_GUIDED_PASS)
    latent = branch.encode(IMAGE)
    assert latent is not None
    phrase = parse_phrase("red mug")
    (logits,) = branch.logits(latent, [phrase])
    maps = branch.reader.maps(logits, phrase)
    assert graphs.batches() == [
        ("vae_encoder", 1),
        ("sd_text", 1),
        ("unet_taps", 1),
        ("sd_text", 1),
        ("unet_taps", 1),
    ]
    assert maps.shape == (3, 2, 2)
    assert list(latent.first) == ["taps"]


def test_without_guidance_the_empty_prompt_is_never_run() -> None:
    graphs = FakeGraphs()
    _maps(_branch(graphs, EDGE), "red mug")
    assert graphs.batches() == [("vae_encoder", 1), ("sd_text", 1), ("unet_taps", 1)]


@pytest.mark.parametrize("timesteps", [(51,), (51, 1)])
def test_without_guidance_the_maps_are_what_both_branches_give_at_one(timesteps: tuple[int, ...]) -> None:
    alone = dataclasses.replace(EDGE, timesteps=timesteps)
    almost = dataclasses.replace(alone, guidance=1 + 1e-9)  # 1 in float32, and still both branches are run
    graphs, both = FakeGraphs(), FakeGraphs()
    maps = _maps(_branch(graphs, alone), "a red mug")
    wanted = _maps(_branch(both, almost), "a red mug")
    assert len(both.calls) > len(graphs.calls)
    np.testing.assert_allclose(maps, wanted, atol=1e-5)


def test_feeds_have_the_dtypes_of_the_contract() -> None:
    graphs = FakeGraphs()
    _maps(_branch(graphs, OFFICIAL), "red mug")
    for _, feeds in graphs.calls:
        for name, values in feeds.items():
            assert values.dtype == (np.int32 if name == "ids" else np.float32), name


def test_three_passes_give_maps_of_all_three() -> None:
    options = dataclasses.replace(OFFICIAL, timesteps=(101, 51, 1), start_level=151)
    graphs = FakeGraphs()
    maps = _maps(_branch(graphs, options), "red mug")
    assert maps.shape == (9, 2, 2)
    assert [float(feeds["timestep"][0]) for name, feeds in graphs.calls if "unet" in name] == [
        101,
        101,
        51,
        1,
    ]


def test_the_same_seed_gives_the_same_maps_and_another_seed_others() -> None:
    first, again, other = (_maps(_branch(FakeGraphs(), OFFICIAL, seed=seed), "red mug") for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", ["vae_encoder", "sd_text", "unet"])
def test_values_that_are_not_finite_are_an_error_not_a_mask(name: str) -> None:
    with pytest.raises(EngineError, match=f"graph {name} returned .* not finite"):
        _branch(FakeGraphs(broken=name), OFFICIAL).encode(IMAGE)


def test_softmax_attention_is_refused() -> None:
    with pytest.raises(InputError, match="softmax"):
        _branch(FakeGraphs(), VARIANTS["paper"].attention)


def test_no_passes_are_refused() -> None:
    with pytest.raises(InputError, match="timesteps"):
        _branch(FakeGraphs(), dataclasses.replace(OFFICIAL, timesteps=()))
