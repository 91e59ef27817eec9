"""TensorRT and TensorRT-RTX: build plans of a bundle's graphs (`building`), and run them (`session`).

`flavour` is the only module that knows how the releases differ; `validation` decides which plans may be
loaded, because plans are code.
"""
