"""ONNX graph passes on onnx_ir models; none of them runs a graph.

A pass is a class in a module of its own. Its instances take an `ir.Model`, change it in place and return it:

    half_precision.py   HalfPrecision: fp16 or bf16 everywhere but in fp32 regions
    quantize.py         Quantize: int8 or fp8 weights and inputs, with explicit Q/DQ nodes
    smooth_quant.py     SmoothQuant: activations scaled down, weights scaled up
    fuse_attention.py   FuseAttention: large attentions in ONNX Runtime's fused kernel
    attention_operator.py  UseAttentionOperator: attentions as ONNX's Attention, for TensorRT's builder
    round_half.py       RoundHalf: half precision emulated by casts around every node

keep_fp32.py and quantizable.py hold the built-in rules for which nodes a pass applies to; convert.py applies
a recipe to a file; early_exit.py cuts `unet_taps` out of `unet`; graph_files.py reads and checks files.
"""
