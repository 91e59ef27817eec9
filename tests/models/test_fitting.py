"""Tensors of a file in a module: every tensor in its place, or a refusal by the names of the file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")


from refdiff.errors import InputError
from refdiff.models.fitting import fit_module, make_stand_ins
from tests.support.toy_module import Toy, toy_tensors

# --- fitting


def fit(tensors: dict[str, Any], **options: Any) -> Any:
    return fit_module(Toy, tensors, file=Path("toy.pth"), **options)


def test_a_fitted_module_computes_what_its_source_does() -> None:
    source = Toy()
    source.load_state_dict(toy_tensors())
    source.eval()
    before = torch.get_rng_state()
    module = fit(toy_tensors())
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(6, 3)
    assert torch.equal(module(x), source(x))
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.norm.num_batches_tracked.dtype == torch.int64


def test_a_fitted_module_shares_the_memory_of_full_precision_weights() -> None:
    tensors = toy_tensors()
    assert fit(tensors).linear.weight.data_ptr() == tensors["linear.weight"].data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("linear.bias"), "tensor linear.bias is missing"),
        (lambda t: (t.pop("linear.bias"), t.pop("drawn")), "tensor drawn (and 1 more) is missing"),
        (lambda t: t.update(x=torch.ones(1)), "tensor x is not part of a known architecture"),
        (lambda t: t.update(kept=torch.ones(2)), "tensor kept is not part of a known architecture"),
        (
            lambda t: t.update({"linear.weight": torch.ones(4, 2)}),
            "tensor linear.weight has shape [4, 2], expected [4, 3]",
        ),
        (
            lambda t: t.update(drawn=torch.ones(5, dtype=torch.int8)),
            "tensor drawn is torch.int8, expected torch.float32",
        ),
        (
            lambda t: t.update({"norm.num_batches_tracked": torch.tensor(1.0)}),
            "tensor norm.num_batches_tracked is torch.float32, expected torch.int64",
        ),
        (lambda t: t.update(drawn=torch.ones(5).to_sparse()), "tensor drawn is stored as torch.sparse_coo"),
        *(
            (
                lambda t, kind=kind: t.update(drawn=torch.ones(5).to(kind)),
                f"tensor drawn is {kind}, expected torch.float32",
            )
            for kind in (torch.float8_e4m3fn, torch.float8_e5m2)
        ),
        (lambda t: t["drawn"].__setitem__(2, float("nan")), "tensor drawn holds NaN or infinity"),
        (lambda t: t["linear.weight"].__setitem__((1, 1), float("-inf")), "tensor linear.weight holds NaN"),
        (lambda t: t.update(drawn=torch.full((5,), 1e300, dtype=torch.float64)), "tensor drawn holds NaN"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in toy_tensors().items()}
    change(tensors)
    with pytest.raises(InputError, match=re.escape("toy.pth: " + message)):
        fit(tensors)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_usual_precision_becomes_float32(kind: torch.dtype) -> None:
    assert torch.equal(fit(toy_tensors() | {"drawn": torch.arange(5).to(kind)}).drawn, torch.arange(5.0))


def test_stand_ins_cost_no_memory_and_are_refused_as_what_they_stand_for_would_be() -> None:
    tensors = make_stand_ins(toy_tensors())
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in toy_tensors().items()
    }
    assert tensors["linear.weight"].untyped_storage().nbytes() == 4
    fit(tensors)
    for odd in (torch.ones(5).to_sparse(), torch.ones(5).to(torch.float8_e5m2), torch.ones(5).int()):
        with pytest.raises(InputError, match=r"tensor drawn is"):
            fit(make_stand_ins(toy_tensors() | {"drawn": odd}))


def test_messages_use_the_files_own_names() -> None:
    tensors = toy_tensors()
    del tensors["linear.bias"]
    with pytest.raises(InputError, match=r"tensor original\.linear\.bias is missing"):
        fit(tensors, written_as=lambda name: f"original.{name}")


def test_numbers_whose_sum_overflows_are_still_numbers() -> None:
    large = torch.full((5,), 3e38)
    assert torch.equal(fit(toy_tensors() | {"drawn": large}).drawn, large)
