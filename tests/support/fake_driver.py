"""An in-memory stand-in for the CUDA driver's library, as ctypes calls it."""

from collections.abc import Sequence

from refdiff.engines.trt.device import Device

RTX_4090 = Device(name="NVIDIA RTX 4090", compute_capability="8.9", memory_bytes=24 << 30, driver_cuda="12.8")
RTX_3090 = Device(name="NVIDIA RTX 3090", compute_capability="8.6", memory_bytes=24 << 30, driver_cuda="12.8")


class FakeDriver:
    """As libcuda: results go into what `byref` was made of; 0 is success."""

    def __init__(
        self, *, devices: Sequence[Device] = (RTX_4090, RTX_3090), init: int = 0, context: int = 0
    ) -> None:
        self.devices, self.init, self.context = devices, init, context
        self.retained = 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.devices)
        return 0

    def cuGetErrorName(self, code, text):
        text._obj.value = {100: b"CUDA_ERROR_NO_DEVICE", 803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}.get(code)
        return 0

    def cuDeviceGet(self, handle, ordinal):
        handle._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name, size, handle):
        name.value = self.devices[handle.value].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory, handle):
        memory._obj.value = self.devices[handle.value].memory_bytes
        return 0

    def cuDriverGetVersion(self, version):
        major, minor = map(int, self.devices[0].driver_cuda.split("."))
        version._obj.value = 1000 * major + 10 * minor
        return 0

    def cuDeviceGetAttribute(self, value, which, handle):
        major, minor = self.devices[handle.value].compute_capability.split(".")
        value._obj.value = int({75: major, 76: minor}[which])
        return 0

    def cuDevicePrimaryCtxRetain(self, context, handle):
        self.retained += not self.context
        return self.context

    def cuCtxSetCurrent(self, context):
        return 0

    def cuMemGetInfo_v2(self, free, total):
        free._obj.value, total._obj.value = 20 << 30, 24 << 30
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, handle):
        self.retained -= 1
        return 0
