"""The runtime leaves the threads of numpy's linear algebra library asleep: awake, they spin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json, os, sys, time
from pathlib import Path
import numpy as np

def busy():
    return [int(Path(f"/proc/self/task/{one}/schedstat").read_text().split()[0]) for one in workers]

workers = sorted(set(os.listdir("/proc/self/task")) - {str(os.getpid())})
time.sleep(0.5)  # they spin for a while when they are made
started = busy()

import refdiff
from refdiff.contracts.options import options_for
from refdiff.loading import segmenter_of
from refdiff.contracts.inspection import find_bundle
from refdiff.engines.factory import open_sessions
from refdiff.data.synthetic import scene_samples
from refdiff.runtime.resize import upsample_bilinear
from refdiff.runtime.clip_inputs import interpolate_positions
from refdiff.runtime.resize import MaskResize

bundle = find_bundle("mini")
sample = next(scene_samples(range(3_000_000, 3_000_100)))
for variant in ("official", "edge"):
    sessions = open_sessions(bundle, backend="ort-cpu", threads=1)
    with segmenter_of(bundle, sessions, options_for(bundle.spec, variant=variant)) as segmenter:
        segmenter.segment(segmenter.encode(sample.read()), sample.phrase)
resize = MaskResize(low_res=256, square=1024, resized_yx=(576, 1024), size_yx=(1080, 1920))
resize(np.ones((2, 256, 256), np.float32))
interpolate_positions(np.ones((196, 768), np.float32), (45, 80))
upsample_bilinear(np.ones((64, 64), np.float32), (1920, 1920))
quiet = busy()
np.ones((400, 400)) @ np.ones((400, 400))
time.sleep(0.2)
json.dump([started, quiet, busy()], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no /proc/PID/schedstat on this system")
def test_no_stage_wakes_the_linear_algebra_library() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    started, quiet, woken = json.loads(done.stdout)
    if woken == quiet:
        pytest.skip("numpy's linear algebra library has no threads here")
    assert quiet == started
