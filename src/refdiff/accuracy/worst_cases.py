"""The questions on which runtime and reference differ most, kept while many are asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.agreement import Agreement
from refdiff.contracts.results import Segmentation

MOST_CASES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question, answered twice."""

    profile: str
    seed: int
    """Of the scene."""
    image: NDArray[np.uint8]
    """[y, x, 3] RGB."""
    reference: Segmentation
    runtime: Segmentation
    agreement: Agreement

    @property
    def heat_difference(self) -> float | None:
        """Largest difference between the attention maps, 0..1; None in a mode without one."""
        one, other = self.reference.heat, self.runtime.heat
        return None if one is None or other is None else float(np.abs(one - other).max())

    @property
    def badness(self) -> tuple[float, float]:
        """Larger is worse: the answer first, the map after it."""
        return 1.0 - self.agreement.mask_iou, self.heat_difference or 0.0


class WorstCases:
    """Keeps the worst of all it is shown."""

    def __init__(self, most: int = MOST_CASES) -> None:
        self._most = most
        self._kept: list[Case] = []

    def add(self, case: Case) -> None:
        """Look at one more."""
        self._kept = sorted([*self._kept, case], key=lambda each: each.badness, reverse=True)[: self._most]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Worst first."""
        return tuple(self._kept)
