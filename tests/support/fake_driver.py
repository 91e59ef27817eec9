"""An in-memory stand-in for the CUDA driver's library, as ctypes calls it."""


class FakeDriver:
    """As libcuda: results go into what `byref` was made of; 0 is success."""

    names = ("NVIDIA RTX 4090", "NVIDIA RTX 3090")
    attributes = ({75: 8, 76: 9}, {75: 8, 76: 6})

    def __init__(self, *, init: int = 0, count: int = 2, context: int = 0) -> None:
        self.init, self.count, self.context = init, count, context
        self.retained = 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuGetErrorName(self, code, text):
        text._obj.value = {100: b"CUDA_ERROR_NO_DEVICE", 803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}.get(code)
        return 0

    def cuDeviceGet(self, handle, ordinal):
        handle._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name, size, handle):
        name.value = self.names[handle.value].encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory, handle):
        memory._obj.value = 24 << 30
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 12080
        return 0

    def cuDeviceGetAttribute(self, value, which, handle):
        value._obj.value = self.attributes[handle.value][which]
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
