"""Connected regions of masks, as `refdiff.runtime.masks` finds them."""

import numpy as np

from refdiff.contracts.session import Bool
from refdiff.runtime.masks import Integers, _find_runs, _label_runs


def region_sizes(mask: Bool) -> Integers:
    """Count the pixels of each connected region of a mask [y, x], in reading order of their first pixels."""
    runs = _find_runs(mask)
    _, regions = np.unique(_label_runs(runs, mask.shape[1]), return_inverse=True)
    return np.bincount(regions, weights=runs.ends - runs.starts).astype(np.intp)
