"""TensorRT and TensorRT-RTX: from a bundle's graphs to plans, and which plan may be loaded where.

flavour      which of the two, which version, what it can do; nobody else asks
device       the GPU of this machine, as far as plans depend on it
options      what a build may be asked for, and who refuses what
shapes       the sizes a plan is made for
plan_key     what a plan is made from, as one hash
metadata     the JSON beside a plan
plan_store   where plans lie, how they get there, one build at a time
validation   everything that is checked before a plan is loaded
parsing      ONNX file -> network, or an error that names the node
building     network -> plan file
monitor      TensorRT's progress, and stopping a build
build_log    what TensorRT says while it works
lint         operators that parse and are risky all the same
attention_blocks  the attentions of a network, and what keeps each from being fused
plan_layers  the kernels of a plan, and which attentions they compute whole

and from a plan to arrays:

plans        the plans of a bundle that can run here
choice       from the name of a back-end to sessions
sessions     opened late, held as the memory plan says
session      one graph: feeds in, outputs out or left on the device
engine       a loaded plan and its execution context
library      TensorRT's runtime, and what it says when it fails
capture      replaying a run as a CUDA graph
device_array an output that stayed on the device
buffers      device and pinned memory, and the context that sessions share
jit_cache    kernels that TensorRT-RTX compiled, kept beside the plan
cuda         the few calls of CUDA; cudart imports cuda-python
"""
