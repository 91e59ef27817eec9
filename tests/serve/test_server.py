"""`refdiff serve` as a process, over the built-in bundle."""

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("onnxruntime")

from refdiff.contracts.inspection import find_bundle
from refdiff.serve.client import Client

pytestmark = pytest.mark.slow


def test_a_process_gives_the_golden_answer_and_ends_with_0_when_it_is_stopped():
    recorded = find_bundle("mini").golden_answer()
    command = [sys.executable, "-m", "refdiff", "serve", "mini", "--port", "0", "--threads", "1"]
    environment = {**os.environ, "REFDIFF_TOKEN": "0123456789abcdef"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            lines = iter(process.stderr)
            address = next(line for line in lines if "serving at" in line).split()[-1]
            client = Client(address, token="0123456789abcdef")
            (answer,) = client.segment(recorded.image, recorded.phrase)
            process.send_signal(signal.SIGTERM)
            log = "".join(lines)
        finally:
            process.terminate()
    assert process.returncode == 0
    assert (answer.mask == recorded.mask).mean() > 0.99
    assert '"path": "/v1/segment", "status": 200' in log
    assert recorded.phrase not in log


def test_an_address_for_other_machines_without_a_token_is_a_usage_error():
    command = [sys.executable, "-m", "refdiff", "serve", "mini", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--token" in done.stderr
