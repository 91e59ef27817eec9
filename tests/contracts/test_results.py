import numpy as np
import pytest

from refdiff.contracts.results import PackedMasks, stack_masks
from refdiff.runtime import masks
from refdiff.runtime.clip_inputs import sample_on_grid
from refdiff.runtime.scoring import attention_contrast, between_class_variance

SIZE = (23, 37)


def _dense():
    found = np.zeros((6, *SIZE), np.bool_)
    found[0] = True
    found[1, 5:9, 30:37] = True
    found[2, 22, 36] = True
    found[4] = np.random.default_rng(0).random(SIZE) < 0.3
    found[5, :, 7] = True
    return found  # the mask 3 is empty


@pytest.mark.parametrize(
    "index", [slice(1, 5, 2), np.array([5, 0, 0]), np.array([True, False, True, True, False, False]), []]
)
def test_packed_masks_are_indexed_like_an_array(index):
    dense, packed = _dense(), PackedMasks(_dense(), SIZE)
    some = packed[index]
    expected = dense[index]
    assert some.shape == expected.shape
    assert [mask.tolist() for mask in some] == expected.tolist()
    for i in (0, 3, -1, np.int64(4)):
        np.testing.assert_array_equal(packed[i], dense[i])
    with pytest.raises(IndexError):
        packed[6]


def test_packed_masks_become_the_array_they_were_made_of():
    packed = PackedMasks(iter(_dense()), SIZE)
    assert np.asarray(packed).dtype == np.bool_
    np.testing.assert_array_equal(packed, _dense())
    np.testing.assert_array_equal(np.asarray(packed, np.uint8), _dense().astype(np.uint8))
    packed[0][:] = False
    np.testing.assert_array_equal(packed, _dense())


def test_masks_are_packed_only_where_an_array_would_take_too_much_memory():
    dense = stack_masks(iter(_dense()), 6, SIZE, dense_bytes=6 * 23 * 37)
    packed = stack_masks(iter(_dense()), 6, SIZE, dense_bytes=6 * 23 * 37 - 1)
    assert isinstance(dense, np.ndarray)
    assert isinstance(packed, PackedMasks)
    np.testing.assert_array_equal(dense, packed)
    assert packed.nbytes <= -(-dense.nbytes // 8) + 6


def test_packed_masks_are_measured_and_scored_as_an_array_is():
    dense, packed = _dense(), PackedMasks(_dense(), SIZE)
    heat = np.random.default_rng(1).random(SIZE, np.float32)
    np.testing.assert_array_equal(masks.areas(packed), masks.areas(dense))
    np.testing.assert_array_equal(masks.boxes(packed), masks.boxes(dense))
    np.testing.assert_array_equal(sample_on_grid(packed, (4, 6)), sample_on_grid(dense, (4, 6)))
    np.testing.assert_array_equal(attention_contrast(heat, packed), attention_contrast(heat, dense))
    np.testing.assert_array_equal(between_class_variance(heat, packed), between_class_variance(heat, dense))
