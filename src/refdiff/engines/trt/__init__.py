"""TensorRT and TensorRT-RTX behind the Session protocol: one code path, plans in, arrays out."""
