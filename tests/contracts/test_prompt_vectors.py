from dataclasses import fields

import numpy as np
import pytest

from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.spec import SamSpec
from tests.support.prompts import readable_vectors

SAM = SamSpec(image_size=64, embed_channels=16, embed_size=4)


def test_what_was_written_is_read():
    vectors = readable_vectors(SAM)
    again = PromptVectors.from_arrays(vectors.to_arrays(), SAM)
    assert again.side == 64
    for name in ("frequencies", "labels", "not_a_point", "no_mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(vectors, name))
    for layer, before in zip(again.mask_layers, vectors.mask_layers, strict=True):
        for each in fields(layer):
            np.testing.assert_array_equal(getattr(layer, each.name), getattr(before, each.name))


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("side", np.array(0, np.int32), "side"),
        ("side", np.array(64.0), "side"),
        (
            "frequencies",
            np.zeros((2, 4), np.float32),
            r"frequencies is float32 \(2, 4\), expected .*\(2, 8\)",
        ),
        ("labels", np.zeros((4, 16)), "labels is float64"),
        ("no_mask", np.full(16, np.nan, np.float32), "no_mask holds values that are not finite"),
        ("mask.1.product", np.zeros((3, 1), np.float32), "mask.1.product"),
        ("mask.2.bias", np.zeros(3, np.float32), "mask.2.bias"),
    ],
)
def test_what_does_not_fit_the_sizes_is_named(name, array, said):
    arrays = {**readable_vectors(SAM).to_arrays(), name: array}
    with pytest.raises(ValueError, match=said):
        PromptVectors.from_arrays(arrays, SAM)
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        PromptVectors.from_arrays(arrays, SAM)
