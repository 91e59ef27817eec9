"""Run a bundle's graphs with ONNX Runtime or TensorRT, and build TensorRT's plans."""
