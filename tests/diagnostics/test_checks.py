"""Lines about four machines: what is well, what is not, and the cure."""

from pathlib import Path

import pytest

from refdiff.diagnostics.checks import check_machine, check_packages
from refdiff.diagnostics.facts import Diagnosis, format_size
from refdiff.diagnostics.packages import ORT_REPORT
from refdiff.diagnostics.sources import Ran
from tests.support.machines import (
    CPU_ONLY,
    FakeMachine,
    cpu_box,
    orin_jetpack6,
    rtx_workstation,
    thor_jetpack7,
)


def lines(machine: FakeMachine) -> dict[str, Diagnosis]:
    facts = machine.facts()
    return {each.name: each for each in (*check_machine(facts), *check_packages(facts))}


def warnings(machine: FakeMachine) -> set[str]:
    return {name for name, each in lines(machine).items() if each.state != "ok"}


def test_a_workstation_that_has_everything_has_no_warning(tmp_path: Path) -> None:
    said = lines(rtx_workstation(tmp_path))
    assert {each.state for each in said.values()} == {"ok"}
    assert said["GPU"].found == "NVIDIA GeForce RTX 4090, compute capability 8.9, 25.0 GB"
    assert said["driver"].found == "580.95.05, knows CUDA 13.0"
    assert said["GPU memory"].found == "23.0 GB free of 25.0 GB"
    assert "toolkit 13.0.1, cudart 12, 13; cudnn 9" in said["CUDA libraries"].found
    assert said["onnxruntime"].found == "onnxruntime-gpu 1.32.0; providers: Tensorrt, CUDA, CPU"


def test_a_machine_without_a_gpu_is_warned_of_that_alone(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    assert warnings(machine) == {"GPU"}
    said = lines(machine)
    assert "no NVIDIA driver" in said["GPU"].found
    assert "ort-cpu needs neither" in said["GPU"].cure
    assert "Jetson" not in said
    assert "driver" not in said


def test_a_slow_power_mode_has_the_number_of_the_fastest_as_its_cure(tmp_path: Path) -> None:
    said = lines(orin_jetpack6(tmp_path))
    assert (said["power mode"].state, said["power mode"].found[:3]) == ("warn", "15W")
    assert "sudo nvpmodel -m 2 (MAXN_SUPER)" in said["power mode"].cure
    assert said["JetPack"].found == "6.2, Jetson Linux 36.4.3"
    assert "sudo jetson_clocks" in said["clocks"].cure
    assert "shared with the processor" in said["GPU memory"].found
    assert said["tensorrt-rtx"].found == "not installed; there is none for aarch64"


def test_full_power_and_held_clocks_need_no_cure(tmp_path: Path) -> None:
    said = lines(thor_jetpack7(tmp_path))
    assert (said["power mode"].state, said["power mode"].found) == ("ok", "MAXN")
    assert (said["clocks"].found, said["clocks"].cure) == ("cpu 2601 MHz", "")


def test_a_power_mode_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    machine = orin_jetpack6(tmp_path)
    del machine.answers["nvpmodel"]
    line = lines(machine)["power mode"]
    assert line.state == "warn"
    assert line.found == "not known: nvpmodel cannot be run (No such file or directory)"


@pytest.mark.parametrize(
    ("release", "package", "state"),
    [
        ("R36 (release), REVISION: 4.3,", "6.2+b77", "ok"),
        ("R35 (release), REVISION: 4.1,", "5.1.2-b104", "warn"),
        ("R35 (release), REVISION: 4.1,", None, "warn"),
        ("R39 (release), REVISION: 2.0,", None, "ok"),
    ],
)
def test_a_jetpack_with_too_old_a_tensorrt_is_reported(
    tmp_path: Path, release: str, package: str | None, state: str
) -> None:
    machine = orin_jetpack6(tmp_path)
    machine.write({"etc/nv_tegra_release": f"# {release}"})
    machine.answers["dpkg-query"] = package or Ran(output="", fault="not installed")
    assert lines(machine)["JetPack"].state == state


@pytest.mark.parametrize(("jetpack", "sbsa"), [("6.2+b77", False), ("7.2.1+b1", False), ("7.2.2+b10", True)])
def test_a_jetson_without_tensorrt_gets_the_sources_of_its_own(
    tmp_path: Path, jetpack: str, sbsa: bool
) -> None:
    machine = orin_jetpack6(tmp_path)
    machine.packages = {"onnxruntime-gpu": "1.23.0"}
    machine.answers["dpkg-query"] = jetpack
    line = lines(machine)["tensorrt"]
    assert (line.state, line.found) == ("warn", "not installed")
    assert "python3-libnvinfer" in line.cure
    assert "pip install" not in line.cure
    assert ("SBSA package of TensorRT 11.4.1" in line.cure) is sbsa


def test_a_gpu_that_only_nvidia_smi_sees_is_a_broken_cuda(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    machine.devices = ()
    machine.why_none = "cuInit of the driver failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
    line = lines(machine)["GPU"]
    assert line.state == "warn"
    assert "nvidia-smi shows NVIDIA GeForce RTX 4090, CUDA does not: cuInit" in line.found
    assert "restart" in line.cure


def test_of_several_gpus_the_used_one_is_reported(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    machine.devices = [*machine.devices, *machine.devices]
    found = [each.found for each in check_machine(machine.facts()) if each.name == "GPU"]
    assert [text.rpartition(", ")[2] for text in found] == ["the one that is used", "not used"]


@pytest.mark.parametrize(("version", "state"), [("3.10.12", "ok"), ("3.13.0", "ok"), ("3.14.1", "warn")])
def test_a_python_that_was_not_tested_is_reported(tmp_path: Path, version: str, state: str) -> None:
    machine = cpu_box(tmp_path)
    machine.python = version
    assert lines(machine)["Python"].state == state


def test_too_little_disk_for_plans_is_reported(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.disk = 10**8
    assert lines(machine)["disk for plans"].found.startswith("100 MB free in ")
    assert lines(machine)["disk for plans"].state == "warn"


def test_an_old_tensorrt_is_reported(tmp_path: Path) -> None:
    machine = orin_jetpack6(tmp_path)
    machine.packages = {**machine.packages, "tensorrt": "8.5.2.2"}
    line = lines(machine)["tensorrt"]
    assert (line.state, line.found) == ("warn", "8.5.2.2, needed is 10.3 or later")


def test_a_gpu_without_any_tensorrt_is_warned_and_a_cpu_is_not(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    machine.packages = {"onnxruntime-gpu": "1.32.0"}
    assert {"tensorrt", "tensorrt-rtx"} <= warnings(machine)
    machine.devices = ()
    assert warnings(machine) == {"GPU"}


def test_an_onnxruntime_without_the_gpu_is_reported_where_there_is_one(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    machine.packages, machine.providers = {"onnxruntime": "1.32.0"}, CPU_ONLY
    line = lines(machine)["onnxruntime"]
    assert (line.state, line.cure) == (
        "warn",
        "pip uninstall onnxruntime, then pip install '.[gpu]' in a clone of refdiff",
    )
    machine.arch = "aarch64"
    assert "NVIDIA publishes" in lines(machine)["onnxruntime"].cure


def test_no_onnxruntime_and_a_broken_one_are_distinguished(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.packages = {}
    assert lines(machine)["onnxruntime"].cure == "pip install '.[cpu]' in a clone of refdiff"
    machine.packages = {"onnxruntime": "1.32.0"}
    machine.answers[" ".join(ORT_REPORT)] = Ran(
        output="", fault="python was ended by SIGILL: it said nothing"
    )
    assert lines(machine)["onnxruntime"].found.endswith("SIGILL: it said nothing")


def test_extras_are_reported_one_by_one(tmp_path: Path) -> None:
    said = lines(cpu_box(tmp_path))
    assert said["extra cpu"].found == "complete"
    assert said["extra gpu"].cure.startswith("in place of the extra cpu: pip uninstall onnxruntime")
    assert said["extra trt"].found == "lacks cuda-python, tensorrt"
    assert said["extra trt"].state == "ok", "an extra is a choice"


def test_a_package_of_an_extra_that_is_too_old_is_a_warning(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.packages = {"onnxruntime": "1.17.1"}
    assert lines(machine)["extra cpu"].found == "onnxruntime 1.17.1, needs 1.20"
    assert lines(machine)["extra cpu"].state == "warn"


def test_extras_of_a_checkout_that_was_not_installed_are_not_known(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.requirements = ()
    assert lines(machine)["extras"].state == "warn"


@pytest.mark.parametrize(
    ("size", "text"), [(None, "an unknown amount"), (5 * 10**8, "500 MB"), (2_340_000_000, "2.3 GB")]
)
def test_sizes_are_readable(size: int | None, text: str) -> None:
    assert format_size(size) == text
