import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.patches import (
    CLASS_BUCKETS,
    MAX_PAIRS,
    MAX_PATCHES,
    class_bucket,
    patch_bucket,
    patch_buckets,
    pictures_per_call,
)


def _clip(grid):
    return ClipSpec(image_size=16 * grid, patch_size=16, width=6, embed_dim=5)


def test_the_ladder_of_vit_b_16():
    expected = (196, 296, 392, 592, 784, 1176, 1568, 2352, 3136, 4704, 6272, 8192)
    assert patch_buckets(_clip(14)) == expected


@given(st.integers(1, 40))
def test_every_ladder_starts_at_the_training_grid_and_ends_at_the_most_patches(grid):
    ladder = patch_buckets(_clip(grid))
    assert (ladder[0], ladder[-1]) == (grid**2, MAX_PATCHES)
    assert list(ladder) == sorted(set(ladder))
    assert not any(count % 8 for count in ladder[1:])


@given(st.integers(1, 40), st.integers(1, MAX_PATCHES))
def test_a_count_is_padded_to_the_next_rung_and_by_at_most_half(grid, patches):
    bucket, ladder = patch_bucket(_clip(grid), patches), patch_buckets(_clip(grid))
    assert bucket == min(count for count in ladder if count >= patches)
    assert bucket < 1.5 * patches + 8 or bucket == grid**2


@pytest.mark.parametrize("grid", [7, 8, 14, 16, 24])
def test_the_training_grid_is_never_padded(grid):
    assert patch_bucket(_clip(grid), grid**2) == grid**2


@pytest.mark.parametrize(("classes", "bucket"), [(1, 1), (2, 16), (10, 16), (20, 32), (33, 64), (64, 64)])
def test_class_tokens_are_padded(classes, bucket):
    assert class_bucket(classes) == bucket
    assert bucket in CLASS_BUCKETS


@given(st.integers(1, MAX_PATCHES))
def test_a_call_takes_as_many_pictures_as_its_memory_allows_but_one_always(tokens):
    pictures = pictures_per_call(tokens)
    assert pictures >= 1
    assert pictures == 1 or pictures * tokens**2 <= MAX_PAIRS
    assert (pictures + 1) * tokens**2 > MAX_PAIRS
