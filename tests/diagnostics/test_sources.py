"""Commands that describe a machine: missing, hanging, failing ones are reported, never raised."""

import sys
import time
from pathlib import Path

import pytest

import refdiff
from refdiff.diagnostics.sources import Sources, installed_version, run_command, this_machine


def python(code: str, seconds: float = 30.0):
    return run_command([sys.executable, "-c", code], seconds)


def test_what_a_command_prints_is_its_output() -> None:
    ran = python("print('said')")
    assert (ran.output, ran.fault) == ("said\n", None)


def test_a_command_that_is_not_there_is_a_fault() -> None:
    ran = run_command(["no-such-tool", "-q"], 5)
    assert ran.output == ""
    assert ran.fault == "no-such-tool cannot be run (No such file or directory)"


@pytest.mark.slow
def test_a_command_that_hangs_is_cut_off_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    ran = run_command(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], 2)
    assert ran.fault == "sh gave no answer within 2 s"
    child = int(note.read_text())
    for _ in range(100):  # its new parent has to notice first
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("its child is still there")


def test_a_command_that_fails_says_so_with_its_last_line() -> None:
    ran = python("import sys; print('first', file=sys.stderr); sys.exit('last')")
    assert ran.fault is not None
    assert ran.fault.endswith("ended with 1: last")


def test_a_command_that_crashes_names_the_signal() -> None:
    ran = python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert ran.fault is not None
    assert ran.fault.endswith("was ended by SIGSEGV: it said nothing")


def test_a_python_imports_what_this_one_does_and_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    ran = python("import json, refdiff; print(refdiff.__file__)")
    assert ran.fault is None
    assert Path(ran.output.strip()).samefile(refdiff.__file__)


def test_a_version_is_known_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert installed_version("numpy") is not None
    assert installed_version("no-such-package") is None


def test_this_machine_can_be_asked() -> None:
    sources = this_machine()
    assert isinstance(sources, Sources)
    assert sources.text("proc/meminfo") is not None
    assert sources.text("no/such/file") is None
    assert sources.disk_free(Path.cwd()) > 0
    assert any("extra ==" in line for line in sources.requirements)
