"""`refdiff doctor` as a person and a script see it, over machines in memory and on this one."""

import json
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.contracts.manifest import MANIFEST_NAME
from refdiff.diagnostics import doctor
from refdiff.diagnostics import doctor as doctoring
from refdiff.diagnostics.doctor import TRIED
from refdiff.diagnostics.smoke_test import SmokeTest
from tests.support.damage import copy_of, edit_manifest
from tests.support.machines import FakeMachine, cpu_box, orin_jetpack6, rtx_workstation
from tests.support.plan_bundle import GRAPHS, write_bundle, write_plan

RAN = SmokeTest(runs=True, said="ran clip_text, 2e-07 off its record")
NOTHING = {name: SmokeTest(runs=False, said=f"{name} is not here; install {name}") for name in TRIED}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """Puts a machine in the place of this one."""

    def put(machine: FakeMachine) -> FakeMachine:
        machine.tests = {**NOTHING, **machine.tests}
        monkeypatch.setattr(doctoring, "this_machine", machine.sources)
        return machine

    return put


def diagnosis(capsys: pytest.CaptureFixture[str], *arguments: str):
    code = main(["doctor", *arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    return code, document, {each["name"]: each for each in document.get("findings", ())}


def test_one_back_end_that_runs_is_enough(here, tmp_path, capsys) -> None:
    machine = here(cpu_box(tmp_path / "root"))
    machine.tests["ort-cpu"] = RAN
    code, document, lines = diagnosis(capsys)
    assert (code, document["passed"], document["runs_with"]) == (0, True, ["ort-cpu"])
    assert document["bundle"] is None
    assert lines["verdict"]["found"] == "bundles run here with ort-cpu"
    assert lines["ort-cpu"]["state"] == "ok"
    assert (lines["ort-cuda"]["found"], lines["ort-cuda"]["cure"]) == (
        "ort-cuda is not here",
        "install ort-cuda",
    )
    assert "files" not in lines, "no bundle was given"
    assert document["machine"]["host"]["cores"] == 2


def test_a_machine_on_which_nothing_runs_ends_with_3(here, tmp_path, capsys) -> None:
    here(cpu_box(tmp_path / "root"))
    code, document, lines = diagnosis(capsys)
    assert (code, document["passed"], document["runs_with"]) == (3, False, [])
    assert lines["verdict"]["state"] == "fail"
    assert "pip install '.[cpu]'" in lines["verdict"]["cure"]


def test_a_machine_that_only_lacks_plans_is_well_and_a_bundle_without_them_is_not(
    here, tmp_path, capsys
) -> None:
    machine = here(orin_jetpack6(tmp_path / "root"))
    machine.tests["tensorrt"] = SmokeTest(runs=False, said="no plans; build them", can_build=True)
    code, _, lines = diagnosis(capsys)
    assert (code, lines["verdict"]["found"]) == (0, "plans can be built and run here with tensorrt")
    code, _, lines = diagnosis(capsys, "mini")
    assert code == 3
    assert lines["verdict"]["cure"].startswith("refdiff build ")
    assert lines["verdict"]["cure"].endswith(" --flavour tensorrt")


def test_a_bundle_is_verified_and_tried(here, tmp_path, capsys) -> None:
    machine = here(rtx_workstation(tmp_path / "root"))
    machine.tests |= {"ort-cuda": RAN, "ort-cpu": RAN}
    code, document, lines = diagnosis(capsys, "mini")
    assert (code, document["runs_with"]) == (0, ["ort-cuda", "ort-cpu"])
    assert "every file matches the manifest" in lines["files"]["found"]
    assert lines["verdict"]["found"] == "runs here with ort-cuda, ort-cpu"
    assert {Path(command[-2]).name for command in machine.asked if command[-1] in NOTHING} == {"bundle"}


def test_a_damaged_bundle_is_reported_and_not_tried(here, tmp_path, capsys) -> None:
    machine = here(cpu_box(tmp_path / "root"))
    bundle = write_bundle(tmp_path / "bundle")
    (bundle.path / "unet.onnx").write_bytes(b"tenu")
    code, _, lines = diagnosis(capsys, str(bundle.path))
    assert (code, lines["files"]["state"], lines["verdict"]["state"]) == (3, "fail", "fail")
    assert lines["verdict"]["found"].endswith("cannot run here: it is damaged")
    assert "unet.onnx was changed" in lines["files"]["found"]
    assert "copy or export the bundle again" in lines["files"]["cure"]
    assert not any(command[-1] in NOTHING for command in machine.asked)
    assert lines["system"]["state"] == "ok", "the machine is described all the same"


@pytest.mark.parametrize("what", ["missing", "empty folder", "another's manifest", "a newer format"])
def test_what_is_no_bundle_ends_with_2(what, here, tmp_path, capsys) -> None:
    here(cpu_box(tmp_path / "root"))
    path = tmp_path / "what"
    if what == "a newer format":
        edit_manifest(
            copy_of(write_bundle(tmp_path / "bundle").path, path), lambda m: m.update(format_version=99)
        )
    elif what != "missing":
        path.mkdir()
        if what == "another's manifest":
            (path / MANIFEST_NAME).write_text('{"name": "an app"}')
    code, document, _ = diagnosis(capsys, str(path))
    assert (code, document["error"]["kind"]) == (2, "BundleError")


def test_random_weights_are_a_warning(here, tmp_path, capsys) -> None:
    machine = here(cpu_box(tmp_path / "root"))
    machine.tests["ort-cpu"] = RAN
    bundle = write_bundle(tmp_path / "bundle")
    edit_manifest(bundle.path, lambda m: m.update(random_seed=7))
    code, _, lines = diagnosis(capsys, str(bundle.path))
    assert (code, lines["weights"]["state"]) == (0, "warn")
    assert lines["weights"]["found"] == "random, seed 7: its masks mean nothing"


def test_weights_that_do_not_fit_into_memory_are_not_tried(here, tmp_path, capsys) -> None:
    machine = here(rtx_workstation(tmp_path / "root"))
    machine.tests |= {"ort-cuda": RAN, "ort-cpu": RAN}
    machine.memory_free = 10**6
    machine.write({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 1000 kB\nSwapFree: 1000 kB\n"})
    code, _, lines = diagnosis(capsys, "mini")
    assert code == 3
    assert lines["ort-cpu"]["found"].endswith("MB and 2 MB are free")
    assert lines["ort-cuda"]["found"].endswith("MB and 1 MB are free")
    assert "smaller precision" in lines["ort-cpu"]["cure"]


def test_plans_are_counted_and_the_first_that_does_not_fit_is_named(here, tmp_path, capsys) -> None:
    machine = here(rtx_workstation(tmp_path / "root"))
    bundle = write_bundle(tmp_path / "bundle")
    write_plan(bundle, "unet")
    machine.tests["tensorrt"] = SmokeTest(
        runs=False,
        said="sam_encoder is too old; build it again",
        can_build=True,
        fitting=("unet", "sam_decoder"),
        refused={"sam_encoder": "sam_encoder is too old; build it again"},
    )
    _, _, lines = diagnosis(capsys, str(bundle.path))
    assert lines["plans for tensorrt"] == {
        "section": "back-ends",
        "name": "plans for tensorrt",
        "state": "warn",
        "found": "2 of 4 graphs have one that is intact and fits; sam_encoder is too old",
        "cure": "build it again",
    }
    assert "plans for tensorrt-rtx" not in lines
    machine.tests["tensorrt"] = SmokeTest(runs=True, said="ran", can_build=True, fitting=GRAPHS)
    _, _, lines = diagnosis(capsys, str(bundle.path))
    assert lines["plans for tensorrt"]["state"] == "ok"


def test_plans_that_cannot_be_checked_are_reported(here, tmp_path, capsys) -> None:
    machine = here(cpu_box(tmp_path / "root"))
    machine.tests["ort-cpu"] = RAN
    bundle = write_bundle(tmp_path / "bundle")
    write_plan(bundle, "unet")
    _, _, lines = diagnosis(capsys, str(bundle.path))
    assert "cannot be checked here" in lines["plans for tensorrt"]["found"]


def test_a_test_process_that_crashes_or_hangs_is_a_line(here, tmp_path, capsys) -> None:
    machine = here(cpu_box(tmp_path / "root"))
    machine.tests["ort-cpu"] = RAN
    del machine.tests["ort-cuda"]
    code, _, lines = diagnosis(capsys)
    assert (code, lines["ort-cuda"]["state"]) == (0, "warn")
    assert lines["ort-cuda"]["found"].startswith("the test failed: ")


def test_the_table_has_every_line_and_the_error_goes_to_stderr(here, tmp_path, capsys) -> None:
    here(cpu_box(tmp_path / "root"))
    assert main(["doctor"]) == 3
    streams = capsys.readouterr()
    for text in ("MACHINE", "PACKAGES", "KNOWN-BAD", "BACK-ENDS", "VERDICT", "fail", "AMD EPYC"):
        assert text in streams.out
    assert streams.err.endswith("error: no back-end can run anything here\n")


def test_the_error_names_the_bundle_that_cannot_run(here, tmp_path, capsys) -> None:
    here(cpu_box(tmp_path / "root"))
    bundle = write_bundle(tmp_path / "bundle")
    assert main(["doctor", str(bundle.path)]) == 3
    assert capsys.readouterr().err.endswith(f"error: {bundle.path} cannot run here\n")


@pytest.mark.slow
def test_this_machine_is_examined_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    report = doctor.doctor("mini")
    assert report.passed
    assert "ort-cpu" in report.runs_with
    assert json.dumps(report.to_json())
