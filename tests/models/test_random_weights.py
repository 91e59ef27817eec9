"""Drawn weights are the same each time, and a module of them computes."""

from dataclasses import replace

import pytest

pytestmark = [pytest.mark.needs_torch]
torch = pytest.importorskip("torch")

from refdiff.models.choice import ModelChoice, load_choice
from refdiff.models.sam import MOBILE_SAM, sam_spec
from refdiff.models.stacks import random_module


class Small(torch.nn.Module):
    """A layer, a norm, a table, and a buffer that is random by design."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 32))
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("frequencies", torch.randn(4))


def states(seed: int, name: str = "small") -> dict[str, torch.Tensor]:
    return random_module(Small, seed=seed, name=name).state_dict()


def test_the_same_seed_draws_the_same_whatever_was_drawn_before() -> None:
    first = states(3)
    torch.randn(5)
    second = states(3)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("seed", "name"), [(4, "small"), (3, "other")])
def test_another_seed_or_component_draws_others(seed: int, name: str) -> None:
    first, second = states(3), states(seed, name)
    assert not torch.equal(first["layer.weight"], second["layer.weight"])
    assert not torch.equal(first["frequencies"], second["frequencies"])


def test_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    states(3)
    assert torch.equal(torch.randn(3), expected)


def test_what_passes_through_keeps_its_size() -> None:
    module = random_module(Small, seed=0, name="small")
    state = module.state_dict()
    assert torch.equal(state["norm.weight"], torch.ones(32))
    assert state["layer.weight"].std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert state["pos_embed"].std().item() == pytest.approx(0.02, rel=0.5)
    assert state["logit_scale"].exp().item() == pytest.approx(100.0)
    passed = module.layer(torch.randn(1000, 64, generator=torch.Generator().manual_seed(0)))
    assert passed.std().item() == pytest.approx(1.0, rel=0.2)


def test_the_module_is_ready_to_run_and_has_no_gradients() -> None:
    module = random_module(Small, seed=0, name="small")
    assert not module.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())


def test_the_small_models_of_refdiff_edge_are_drawn_too() -> None:
    stack = load_choice(ModelChoice(name="refdiff-edge", random_weights=True), "the test")
    assert stack.spec.name == "refdiff-edge"
    assert len(stack.spec.diffusion.tapped_layers) == 3
    assert stack.spec.diffusion.scaling_factor == 0.18215
    assert stack.spec.sam == sam_spec(MOBILE_SAM)
    assert stack.spec.clip.patch_size == 32
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = stack.vae.encode(image).latents
    assert latent.shape == (1, 4, 8, 8)
    assert 0.01 < latent.std() < 100


@pytest.mark.parametrize(
    ("choice", "maps", "sam_side"),
    [
        (ModelChoice(name="refdiff", vae="taesd"), 5, 1024),
        (ModelChoice(name="refdiff", taps="down"), 2, 1024),
        (ModelChoice(name="refdiff-edge", diffusion="bk_sdm_tiny", taps="down"), 1, 1024),
        (ModelChoice(name="refdiff-edge", vae="kl", sam="efficientvit_sam_l0", clip="vit_l_14"), 3, 512),
    ],
)
def test_parts_of_random_weights_mix(choice: ModelChoice, maps: int, sam_side: int) -> None:
    stack = load_choice(replace(choice, random_weights=True), "the test")
    assert len(stack.spec.diffusion.tapped_layers) == maps
    assert (stack.spec.sam.image_size, stack.spec.sam.embed_size) == (sam_side, 64)
