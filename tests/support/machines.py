"""Four machines as files in a folder and answers of commands: what `doctor` sees of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from refdiff.diagnostics.gather import DRIVER_REPORT, NVIDIA_SMI, gather
from refdiff.diagnostics.packages import ORT_REPORT
from refdiff.diagnostics.smoke_test import SmokeTest
from refdiff.diagnostics.sources import Ran, Sources
from refdiff.engines.trt.device import Device

CPU_ONLY = ["AzureExecutionProvider", "CPUExecutionProvider"]
WITH_CUDA = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

REQUIREMENTS = (
    "numpy>=1.26",
    "onnxruntime>=1.20; extra == 'cpu'",
    "onnxruntime-gpu>=1.20; extra == 'gpu'",
    "cuda-python>=12.6; extra == 'trt'",
    "tensorrt>=10.3; extra == 'trt'",
    "cuda-python>=12.6; extra == 'rtx'",
    "tensorrt-rtx>=1.4; (platform_machine == 'x86_64') and extra == 'rtx'",
)


@dataclass
class FakeMachine:
    """Answers as a machine would; change a field and `sources()` tells of the changed one."""

    root: Path
    arch: str = "x86_64"
    python: str = "3.11.7"
    devices: Sequence[Device] = ()
    why_none: str = "there is no NVIDIA driver (no libcuda.so.1)"
    memory_free: int | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    providers: Sequence[str] = tuple(CPU_ONLY)
    answers: dict[str, str | Ran] = field(default_factory=dict)
    """First word of a command, or all of it -> what it prints, or what it comes to."""
    tests: dict[str, SmokeTest] = field(default_factory=dict)
    disk: int = 50 * 10**9
    requirements: tuple[str, ...] = REQUIREMENTS
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, command: Sequence[str], seconds: float) -> Ran:
        self.asked.append(tuple(command))
        if command[-1] in self.tests:
            return Ran(output=json.dumps(asdict(self.tests[command[-1]])))
        known = {
            " ".join(DRIVER_REPORT): json.dumps(
                {
                    "devices": [asdict(device) for device in self.devices],
                    "why_none": "" if self.devices else self.why_none,
                    "memory_free": self.memory_free,
                }
            ),
            " ".join(ORT_REPORT): json.dumps(list(self.providers)),
            **self.answers,
        }
        answer = known.get(" ".join(command), known.get(command[0]))
        if answer is None:
            return Ran(output="", fault=f"{command[0]} cannot be run (No such file or directory)")
        return answer if isinstance(answer, Ran) else Ran(output=answer)

    def sources(self) -> Sources:
        return Sources(
            root=self.root,
            run=self.run,
            version=dict(self.packages).get,
            requirements=self.requirements,
            disk_free=lambda folder: self.disk,
            python=self.python,
            arch=self.arch,
        )

    def facts(self):
        return gather(self.sources(), {"plans": self.root / "home/plans"})


def _memory(total_kb: int, free_kb: int) -> str:
    return f"MemTotal: {total_kb} kB\nMemFree: 9 kB\nMemAvailable: {free_kb} kB\nSwapFree: 1000 kB\n"


def _loader(*libraries: str) -> str:
    return "".join(f"\t{name} (libc6) => /usr/lib/{name}\n" for name in libraries)


def cpu_box(root: Path) -> FakeMachine:
    """No GPU, no driver, no NVIDIA tool: what continuous integration runs on."""
    machine = FakeMachine(root=root, packages={"onnxruntime": "1.32.0", "numpy": "2.4.6"})
    machine.write(
        {
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
            "proc/sys/kernel/osrelease": "6.1.0\n",
            "proc/cpuinfo": "".join(f"processor\t: {n}\nmodel name\t: AMD EPYC\n" for n in range(2)),
            "proc/meminfo": _memory(16_000_000, 12_000_000),
        }
    )
    return machine


def rtx_workstation(root: Path) -> FakeMachine:
    """An RTX 4090 with TensorRT-RTX and onnxruntime-gpu."""
    machine = cpu_box(root)
    machine.devices = [
        Device(
            name="NVIDIA GeForce RTX 4090",
            compute_capability="8.9",
            memory_bytes=25 * 10**9,
            driver_cuda="13.0",
        )
    ]
    machine.memory_free = 23 * 10**9
    machine.packages = {
        "onnxruntime-gpu": "1.32.0",
        "tensorrt-rtx-cu13-bindings": "1.7.1.116",
        "tensorrt-rtx-cu13-libs": "1.7.1.116",
        "cuda-bindings": "13.5.0",
        "nvidia-cudnn-cu13": "9.26.0.51",
    }
    machine.providers = WITH_CUDA
    machine.answers = {
        " ".join(NVIDIA_SMI): "NVIDIA GeForce RTX 4090, 580.95.05\n",
        "ldconfig": _loader("libcudart.so.13", "libcudart.so.12", "libcudnn.so.9", "libcudnn_ops.so.9"),
    }
    machine.write(
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  "
            "580.95.05  Release Build  (builder@host)\nGCC version:  gcc version 13.3.0\n",
            "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.0.1"}}',
        }
    )
    return machine


def orin_jetpack6(root: Path) -> FakeMachine:
    """A Jetson Orin Nano in 15 W, clocks free, JetPack 6.2 with its own TensorRT."""
    machine = cpu_box(root)
    machine.arch, machine.python = "aarch64", "3.10.12"
    machine.devices = [
        Device(name="Orin", compute_capability="8.7", memory_bytes=7_990_000_000, driver_cuda="12.6")
    ]
    machine.memory_free = 5 * 10**9
    machine.packages = {
        "onnxruntime-gpu": "1.23.0",
        "tensorrt": "10.3.0",
        "cuda-python": "12.9.0",
    }
    machine.providers = WITH_CUDA
    machine.answers = {
        "dpkg-query": "6.2+b77",
        "nvpmodel": "NV Power Mode: 15W\n0\n",
        "/sbin/ldconfig": _loader("libcudart.so.12", "libcudnn.so.9", "libnvinfer.so.10"),
    }
    gpu = "sys/class/devfreq/17000000.gpu"
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    machine.write(
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
            "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
            "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  "
            "540.4.0  Release Build\n",
            "proc/cpuinfo": "".join(f"processor\t: {number}\n" for number in range(6)),
            f"{gpu}/min_freq": "306000000\n",
            f"{gpu}/max_freq": "612000000\n",
            f"{cpu}/scaling_min_freq": "729600\n",
            f"{cpu}/scaling_max_freq": "1510400\n",
        }
    )
    return machine


def thor_jetpack7(root: Path) -> FakeMachine:
    """A Jetson Thor at full power with JetPack 7.0, inside a container: no nvpmodel, no dpkg entry."""
    machine = cpu_box(root)
    machine.arch, machine.python = "aarch64", "3.12.3"
    machine.devices = [
        Device(name="NVIDIA Thor", compute_capability="11.0", memory_bytes=131 * 10**9, driver_cuda="13.0")
    ]
    machine.memory_free = 110 * 10**9
    machine.packages = {"onnxruntime": "1.32.0", "tensorrt": "10.13.3", "cuda-python": "13.0.1"}
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    machine.write(
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
            "var/lib/nvpmodel/status": "pmode:0000 fmode:fanNull\n",
            f"{cpu}/scaling_min_freq": "2601000\n",
            f"{cpu}/scaling_max_freq": "2601000\n",
        }
    )
    return machine
