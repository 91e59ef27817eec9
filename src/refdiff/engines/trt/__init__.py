"""TensorRT and TensorRT-RTX: from a bundle's graphs to plans, and which plan may be loaded where.

flavour      which of the two, which version, what it can do; nobody else asks
device       the GPU of this machine, as far as plans depend on it
options      what a build may be asked for, and who refuses what
shapes       the sizes a plan is made for
plan_key     what a plan is made from, as one hash
side_car     the JSON beside a plan
plan_store   where plans lie, how they get there, one build at a time
validation   everything that is checked before a plan is loaded
parsing      ONNX file -> network, or an error that names the node
building     network -> plan file
monitor      TensorRT's progress, and stopping a build
build_log    what TensorRT says while it works
lint         operators that parse and are risky all the same
"""
