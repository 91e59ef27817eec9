"""From torch modules to a bundle of checked ONNX graphs (DESIGN §3, §4)."""
