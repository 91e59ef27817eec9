"""A small module and its tensors."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from torch import nn


class Toy(nn.Module):
    """A module with each kind of thing a state dict holds, and one it does not."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)  # brings an integer
        self.register_buffer("drawn", torch.randn(5))
        self.register_buffer("kept", torch.full((2,), 7.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)) + self.drawn.sum() + self.kept.sum()


def toy_tensors() -> dict[str, Any]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(4)
        return dict(Toy().state_dict())
