"""Export torch models to a bundle of checked ONNX graphs (docs/architecture.md)."""
