"""What `encode` and `segment` need besides the loaded bundle (docs/architecture.md, "Memory")."""

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="no peak memory of a process on this system")

_PROGRAM = """
import resource, sys
import numpy as np
import refdiff

def peak_mb():  # KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)

colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
small = np.kron(colors, np.ones((24, 24, 1), np.uint8))
height, width = int(sys.argv[3]), int(sys.argv[4])
options = refdiff.RunOptions(variant=sys.argv[1], mode=sys.argv[2])
with refdiff.load("mini", options=options) as segmenter:
    segmenter.segment(small, "the red plate")
    rows, columns = np.arange(height) * 96 // height, np.arange(width) * 144 // width
    large = small[rows[:, None], columns]
    loaded = peak_mb()
    segmenter.segment(large, "the red plate")
    print(peak_mb() - loaded)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "mode", "height", "width"),
    [("edge", "full", 1, 16_384), ("official", "gen+seg", 16_384, 1), ("edge", "full", 2400, 3200)],
)
def test_memory_grows_with_the_pixels_and_not_with_the_square_of_the_longer_side(
    variant, mode, height, width
):
    command = [sys.executable, "-c", _PROGRAM, variant, mode, str(height), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200 + 40 * height * width / 1e6, "in MB, above the loaded bundle"
