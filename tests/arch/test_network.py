"""A run opens no socket and reports nothing to a vendor, whatever package it uses."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import refdiff
from tests.support import no_network

ROOT = Path(__file__).parents[2]
SILENCED = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")

VERBS = """
import sys
from refdiff.cli import main

output, scene = sys.argv[1:]
codes = [
    main(["demo", "--bundle", "mini", "--mode", "gen", "--output", output]),
    main(["segment", "mini", f"{output}/{scene}", "the mug", "--output", f"{output}/one.png"]),
    main(["segment", "mini", f"{output}/scenes", "the mug", "--output", f"{output}-answers"]),
    main(["doctor"]),
]
sys.exit(f"exit codes {codes}" if any(codes) else 0)
"""


def run_without_network(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if not no_network.is_possible():
        pytest.skip("this system has no seccomp filter")
    kept = {name: value for name, value in os.environ.items() if name not in SILENCED}
    return subprocess.run(
        [sys.executable, no_network.__file__, sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=ROOT,
        env={**kept, **environment},
    )


def test_the_filter_ends_a_program_that_opens_a_socket() -> None:
    process = run_without_network("-c", "import socket; socket.socket()")
    assert process.returncode == no_network.KILLED


@pytest.mark.slow
def test_no_verb_that_runs_a_bundle_opens_a_socket_or_leaves_files_of_a_vendor(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    process = run_without_network(
        *("-c", VERBS, str(tmp_path / "demo"), "scenes/scene-1.png"),
        HOME=str(home),
        TMPDIR=str(temporary),
        XDG_CACHE_HOME="",
        CI="",
        GITHUB_ACTIONS="",
    )
    assert process.returncode == 0, process.stderr
    assert "SIGSYS" not in process.stdout + process.stderr, "a child of doctor opened a socket"
    assert [*home.rglob("*"), *temporary.rglob("*")] == []


def test_telemetry_is_disabled_before_anything_else_is_imported_and_by_default_only() -> None:
    report = f"import os, json, refdiff; print(json.dumps([os.environ[name] for name in {SILENCED!r}]))"
    assert json.loads(run_without_network("-c", report).stdout) == ["1", "1", "1"]
    asked = run_without_network("-c", report, ORT_DISABLE_TELEMETRY="0")
    assert json.loads(asked.stdout) == ["0", "1", "1"]


def importers_of(package: str) -> set[str]:
    """Files of the package and of the benchmarks that import it, or a module of it."""
    found = set()
    for path in (*Path(refdiff.__file__).parent.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        text = path.read_bytes()
        for node in ast.walk(ast.parse(text)) if package.encode() in text else ():
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if any(name.split(".")[0] == package for name in names):
                found.add(path.name if "benchmarks" in path.parts else path.parent.name + "/" + path.name)
    return found


def test_two_modules_import_onnxruntime() -> None:
    """Both load `ort`, which disables telemetry; the benchmark calls converters after refdiff is imported."""
    expected = {"engines/check_session.py", "engines/ort.py", "full_size_precision.py"}
    assert importers_of("onnxruntime") == expected
    assert importers_of("tokenizers") == {"runtime/tokenizer.py"}, "the search finds what is imported"
