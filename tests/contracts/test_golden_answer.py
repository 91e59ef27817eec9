"""The recorded answer: what is stored comes back, and what does not fit is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.golden_answer import GoldenAnswer
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.manifest import ANSWER_NAME
from refdiff.errors import BundleError
from tests.support.damage import copy_of, edit_manifest, rehash
from tests.support.plans import BUNDLE

RECORDED = find_bundle("mini").golden_answer()


def test_a_stored_answer_comes_back() -> None:
    odd = replace(RECORDED, image=RECORDED.image[:9, :13], mask=RECORDED.mask[:9, :13])
    odd = replace(odd, heat=RECORDED.heat[:9, :13])
    again = GoldenAnswer.from_arrays(odd.to_arrays())
    for name, value in vars(odd).items():
        np.testing.assert_array_equal(getattr(again, name), value)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("heat"),
        lambda arrays: arrays.update(mask=arrays["mask"][:, :1]),
        lambda arrays: arrays.update(mask=arrays["mask"].astype(np.int32)),
        lambda arrays: arrays.update(image=arrays["image"][:, :, :2]),
        lambda arrays: arrays.update(heat=arrays["heat"] + np.float16("nan")),
        lambda arrays: arrays.update(phrase=np.array(["a", "b"])),
        lambda arrays: arrays.update(parts=arrays["parts"][:1]),
    ],
)
def test_an_answer_that_does_not_fit_its_image_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    bundle = copy_of(BUNDLE, tmp_path / "b")
    change(arrays := RECORDED.to_arrays())
    np.savez(bundle / ANSWER_NAME, **arrays)
    rehash(bundle, ANSWER_NAME)
    with pytest.raises(BundleError, match="is not a golden answer"):
        open_bundle(bundle).golden_answer()


def test_a_bundle_without_a_recorded_answer_says_so(tmp_path: Path) -> None:
    bundle = copy_of(BUNDLE, tmp_path / "b")
    edit_manifest(bundle, lambda document: document["files"].pop(ANSWER_NAME))
    with pytest.raises(BundleError, match=f"does not list {ANSWER_NAME}; export again"):
        open_bundle(bundle).golden_answer()
