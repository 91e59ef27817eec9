"""Networks of one attention, of the fake TensorRT."""

from tests.support.fake_builder import Layer, Network, Tensor


def tensor(name, shape=(2, 4, 7, 7), dtype="HALF"):
    return Tensor(name, shape, dtype)


def attention(
    *,
    images=2,
    heads=4,
    head_size=16,
    value_size=None,
    dtype="HALF",
    between=(),
    also=(),
    outputs=("mixed",),
):
    """Product, softmax and product, with casts around the softmax; `between` product and casts."""
    query = tensor("q", (images, heads, 7, head_size), dtype)
    key = tensor("k", (images, heads, head_size, 7), dtype)
    logits = tensor("logits", dtype=dtype)
    layers = [Layer("MATRIX_MULTIPLY", "/MatMul", [query, key], [logits])]
    for layer in between:
        layers.append(Layer(layer.type, layer.name, [layers[-1].outputs[0], *layer.inputs], layer.outputs))
    wide, soft, half = tensor("wide", dtype="FLOAT"), tensor("soft", dtype="FLOAT"), tensor("half")
    mixed = tensor("mixed", (2, 4, 7, head_size))
    layers += [
        Layer("CAST", "/cast", [layers[-1].outputs[0]], [wide]),
        Layer("SOFTMAX", "/Softmax", [wide], [soft]),
        Layer("CAST", "/cast_1", [soft], [half]),
        Layer(
            "MATRIX_MULTIPLY", "/MatMul_1", [half, tensor("v", (2, 4, 7, value_size or head_size))], [mixed]
        ),
        *also,
    ]
    return Network(layers=layers, outputs=[tensor(name) for name in outputs])
