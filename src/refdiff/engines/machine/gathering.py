"""From sources to facts: everything that is to be known of a machine, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from refdiff.contracts.manifest import refdiff_version
from refdiff.engines.machine.facts import Machine
from refdiff.engines.machine.gpu import read_cuda, read_gpus
from refdiff.engines.machine.host import read_disk, read_host
from refdiff.engines.machine.jetson import read_jetson
from refdiff.engines.machine.packages import read_extras, read_onnxruntime, read_packages
from refdiff.engines.machine.sources import Sources


def gather(sources: Sources, folders: Mapping[str, Path]) -> Machine:
    """Describe a machine; what cannot be asked is told as such, never raised.

    Args:
        sources: where to look.
        folders: purpose -> folder, whose disks are to be looked at.
    """
    return Machine(
        refdiff=refdiff_version(),
        host=read_host(sources),
        gpus=read_gpus(sources),
        cuda=read_cuda(sources),
        jetson=read_jetson(sources),
        packages=read_packages(sources),
        onnxruntime=read_onnxruntime(sources),
        extras=read_extras(sources),
        disks=tuple(read_disk(sources, purpose, folder) for purpose, folder in folders.items()),
    )
