"""A Jetson AGX Orin as a folder of files: what its kernel and its power tool tell."""

from pathlib import Path

FILES = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/meminfo": "MemTotal:       31000000 kB\nMemFree:  1 kB\n",
    "proc/cpuinfo": "processor\t: 0\n",
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": "# modes\n< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2201600",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2201600",
    "sys/devices/system/cpu/cpuidle/current_driver": "none",
    "sys/class/devfreq/17000000.gpu/cur_freq": "930750000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48500",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "45250",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
    "sys/class/thermal/cooling_device0/cur_state": "0",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0",
}


def jetson(root: Path) -> Path:
    """Write it under a folder, which is returned."""
    for path, text in FILES.items():
        tell(root, path, text)
    return root


def tell(root: Path, path: str, text: str) -> None:
    """Let one of its files say something."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")
