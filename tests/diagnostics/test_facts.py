"""What is read off four machines, and off broken ones."""

import platform
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from refdiff.diagnostics.facts import Clock, Machine, version_numbers
from refdiff.diagnostics.gather import DRIVER_REPORT, read_disk, read_host
from refdiff.diagnostics.packages import ORT_REPORT, read_extras
from refdiff.diagnostics.sources import Ran
from tests.support.machines import cpu_box, orin_jetpack6, rtx_workstation, thor_jetpack7


def test_a_machine_without_a_gpu_is_described_without_nvidia_tools(tmp_path: Path) -> None:
    facts = cpu_box(tmp_path).facts()
    assert facts.host.system == "Debian GNU/Linux 12 (bookworm)"
    assert (facts.host.processor, facts.host.cores) == ("AMD EPYC", 2)
    assert facts.host.memory_free == 12_000_000 * 1024
    assert (facts.gpus.first, facts.gpus.driver, facts.gpus.listed) == (None, None, ())
    assert facts.gpus.why_none == "there is no NVIDIA driver (no libcuda.so.1)"
    assert (facts.jetson, dict(facts.cuda.found)) == (None, {})


def test_a_workstation_s_driver_libraries_and_toolkit_are_read(tmp_path: Path) -> None:
    facts = rtx_workstation(tmp_path).facts()
    assert facts.gpus.first is not None
    assert facts.gpus.first.compute_capability == "8.9"
    assert (facts.gpus.driver, facts.gpus.memory_free) == ("580.95.05", 23 * 10**9)
    assert facts.cuda.toolkit == "13.0.1"
    assert facts.cuda.found == {"cudart": ("12", "13"), "cudnn": ("9",)}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024",
            "550.54.14",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build", "540.4.0"),
    ],
)
def test_the_kernel_names_the_driver_in_several_ways(tmp_path: Path, text: str, version: str) -> None:
    machine = cpu_box(tmp_path)
    machine.write({"proc/driver/nvidia/version": text})
    assert machine.facts().gpus.driver == version


def test_nvidia_smi_names_the_driver_where_the_kernel_does_not(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    (tmp_path / "proc/driver/nvidia/version").unlink()
    facts = machine.facts()
    assert (facts.gpus.driver, facts.gpus.listed) == ("580.95.05", ("NVIDIA GeForce RTX 4090",))


def test_a_driver_that_hangs_is_a_reason_not_an_error(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    machine.answers[" ".join(DRIVER_REPORT)] = Ran(output="", fault="python gave no answer within 5 s")
    gpus = machine.facts().gpus
    assert gpus.first is None
    assert gpus.why_none == "the driver could not be asked: python gave no answer within 5 s"


def test_an_orin_is_read_off_its_files_and_tools(tmp_path: Path) -> None:
    jetson = orin_jetpack6(tmp_path).facts().jetson
    assert jetson is not None
    assert jetson.model == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (jetson.l4t, jetson.jetpack) == ("36.4.3", "6.2")
    assert jetson.power_mode == "15W"
    assert jetson.power_modes == {"15W": 0, "25W": 1, "MAXN_SUPER": 2}
    assert jetson.clocks == (
        Clock(name="cpu", least=729, most=1510),
        Clock(name="17000000.gpu", least=306, most=612),
    )


def test_a_thor_in_a_container_is_read_off_its_files_alone(tmp_path: Path) -> None:
    jetson = thor_jetpack7(tmp_path).facts().jetson
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack, jetson.power_mode) == ("38.2", "7.0", "MAXN")


def test_a_power_mode_that_is_unknown_has_a_reason(tmp_path: Path) -> None:
    machine = orin_jetpack6(tmp_path)
    machine.answers["nvpmodel"] = Ran(output="", fault="nvpmodel ended with 255: needs root")
    jetson = machine.facts().jetson
    assert jetson is not None
    assert (jetson.power_mode, jetson.power_fault) == (None, "nvpmodel ended with 255: needs root")


def test_jetpack_is_unknown_where_neither_package_nor_table_has_it(tmp_path: Path) -> None:
    machine = thor_jetpack7(tmp_path)
    machine.write({"etc/nv_tegra_release": "# R99 (release), REVISION: 1.2, GCID: 1\n"})
    jetson = machine.facts().jetson
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack) == ("99.1.2", None)


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cached"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_s_limit_is_the_free_memory(
    tmp_path: Path, folder: str, limit: str, used: str, cached: str
) -> None:
    machine = cpu_box(tmp_path)
    machine.write(
        {
            f"{folder}/{limit}": "1000\n",
            f"{folder}/{used}": "700\n",
            f"{folder}/memory.stat": f"{cached} 50\n",
        }
    )
    assert read_host(machine.sources()).memory_free == 350
    machine.write({f"{folder}/{limit}": "max\n"})
    assert read_host(machine.sources()).memory_free == 12_000_000 * 1024


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_the_one_above(tmp_path: Path) -> None:
    disk = read_disk(cpu_box(tmp_path).sources(), "plans", tmp_path / "not" / "yet")
    assert (disk.folder, disk.free, disk.writable) == (tmp_path, 50 * 10**9, True)


def test_onnxruntime_is_asked_only_where_it_is_installed(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.packages = {}
    assert machine.facts().onnxruntime is None
    assert ORT_REPORT not in machine.asked


def test_an_onnxruntime_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    fault = "python ended with 1: ImportError: libcudart.so.13"
    machine.answers[" ".join(ORT_REPORT)] = Ran(output="", fault=fault)
    runtime = machine.facts().onnxruntime
    assert runtime is not None
    assert (runtime.providers, runtime.fault) == ((), fault)


def test_an_extra_lacks_what_is_missing_or_too_old(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.packages = {"onnxruntime-gpu": "1.19.2", "tensorrt": "10.3.0", "cuda-bindings": "13.0"}
    extras = {extra.name: extra for extra in read_extras(machine.sources())}
    assert extras["gpu"].outdated == ("onnxruntime-gpu 1.19.2, needs 1.20",)
    assert extras["cpu"].missing == (), "onnxruntime-gpu brings the same module"
    assert (extras["trt"].missing, extras["trt"].outdated) == ((), ())
    assert extras["rtx"].missing == ("tensorrt-rtx",)


def test_an_extra_does_not_lack_what_is_for_another_processor(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.arch, machine.packages = "aarch64", {"cuda-python": "12.9"}
    assert {extra.name: extra.missing for extra in read_extras(machine.sources())}["rtx"] == ()


def test_every_requirement_of_every_extra_is_understood(tmp_path: Path) -> None:
    declared = {
        extra: [
            each
            for each in required
            if "extra" in str(each.marker) and each.marker.evaluate({"extra": extra})
        ]
        for required in [[Requirement(line) for line in metadata.requires("refdiff") or ()]]
        for extra in metadata.metadata("refdiff").get_all("Provides-Extra") or ()
    }
    names = {extra: {each.name for each in several} for extra, several in declared.items()}
    machine = cpu_box(tmp_path)
    machine.arch = platform.machine()
    machine.requirements, machine.packages = tuple(metadata.requires("refdiff") or ()), {}
    assert {extra.name: set(extra.missing) for extra in read_extras(machine.sources())} == names
    machine.packages = {name: "0.0.1" for several in names.values() for name in several}
    outdated = {text for extra in read_extras(machine.sources()) for text in extra.outdated}
    assert outdated == {
        f"{each.name} 0.0.1, needs {least.version}"
        for several in declared.values()
        for each in several
        for least in each.specifier
        if least.operator == ">="
    }


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.sampled_from(["", "+cu126", "+cpu"]))
def test_a_version_is_its_numbers(numbers: list[int], build: str) -> None:
    assert version_numbers(".".join(map(str, numbers)) + build) == tuple(numbers)


@pytest.mark.parametrize(
    ("version", "numbers"), [("1.2rc1", (1, 2)), ("2.0.dev3", (2, 0)), ("", ()), ("x", ())]
)
def test_a_version_ends_where_its_numbers_do(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


@settings(max_examples=25)
@given(st.binary(max_size=200))
def test_no_file_s_content_is_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = cpu_box(Path(folder))
        for name in (
            "proc/device-tree/model",
            "etc/nv_tegra_release",
            "etc/nvpmodel.conf",
            "proc/meminfo",
            "usr/local/cuda/version.json",
            "sys/fs/cgroup/memory.max",
        ):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert isinstance(machine.facts(), Machine)
