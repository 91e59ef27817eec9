"""ONNX graph passes: each takes a graph in memory or on disk and returns it changed; none runs one."""
