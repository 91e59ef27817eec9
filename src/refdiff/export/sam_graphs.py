"""SAM's graphs: the image encoder, and the decoder of prompts in two parts (METHOD §2).

Decoder and masks together equal `sam.mask_decoder` with `multimask_output=True`. SAM's prompt encoder is in
no graph: the host computes its tokens and mask embeddings from `prompt_vectors`. Upscaling, the part of a
mask's cost beyond its predicted IoU, is a separate graph: it runs only for prompts that pass the filter.

Axes: n = prompts, q = tokens of a prompt, k = prompts chosen from them, c = embedding channels, s = embedding
side, m = 3 masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from refdiff.contracts.graphs import MASKS_PER_POINT
from refdiff.contracts.prompt_vectors import LABELS, NORM_EPS, MaskLayer, PromptVectors
from refdiff.errors import InputError
from refdiff.export.sam_layers import FusibleImageEncoder, PromptTransformer
from refdiff.export.small_encoders import rewrite_small_encoder

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from segment_anything.modeling.common import LayerNorm2d

    from refdiff.contracts.session import Float


class SamEncoder(nn.Module):
    """Normalized, padded image [1, 3, y, x] -> embedding [1, c, s, s]."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        encoder: nn.Module = sam.image_encoder
        is_vit = isinstance(encoder, ImageEncoderViT)
        self.image_encoder = FusibleImageEncoder(encoder) if is_vit else rewrite_small_encoder(encoder)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image embedding."""
        embedding: torch.Tensor = self.image_encoder(image)
        return embedding


class SamDecoder(nn.Module):
    """Embedding and prompt tokens [n, q, c] -> predicted IoU, and the inputs of `SamMasks`.

    The tokens are those of SAM's prompt encoder, which runs on the host (`runtime.prompt`).
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        prompts, decoder = sam.prompt_encoder, sam.mask_decoder
        if decoder.num_multimask_outputs != MASKS_PER_POINT:
            raise InputError(f"got a SAM with {decoder.num_multimask_outputs} masks per point, expected 3")
        self.transformer = PromptTransformer(decoder.transformer)
        self.iou_head = decoder.iou_prediction_head
        self.output_tokens: torch.Tensor
        self.dense: torch.Tensor
        self.image_positions: torch.Tensor
        with torch.no_grad():
            tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
            constants = {
                "output_tokens": tokens.unsqueeze(0),  # [1, 1 + 4, c]
                "dense": prompts.no_mask_embed.weight.reshape(1, 1, -1),
                "image_positions": prompts.get_dense_pe().flatten(2).transpose(1, 2),  # [1, s * s, c]
            }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone())

    def forward(
        self, embedding: torch.Tensor, prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return predicted IoU [n, m], mask tokens [n, m, c] and features [n, s * s, c]."""
        tokens = torch.cat(
            [self.output_tokens.expand(prompts.shape[0], -1, -1), prompts], dim=1
        )  # [n, 5 + q, c]
        image = embedding.flatten(2).transpose(1, 2) + self.dense  # [1, s * s, c]
        tokens, features = self.transformer(image, self.image_positions, tokens)
        iou: torch.Tensor = self.iou_head(tokens[:, 0])[:, 1:]
        # Token 0 predicts the IoUs; token 1 is for the single mask, which the automatic mode does not use.
        return iou, tokens[:, 2 : 2 + MASKS_PER_POINT], features


class SamMasks(nn.Module):
    """Mask logits of chosen prompts.

    A transposed convolution of stride and size 2 is one product per pixel, whose result holds the four new
    pixels: channels stay last, and only the masks are put into image order.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        decoder = sam.mask_decoder
        first, norm, activation, second, last = decoder.output_upscaling
        self.side = sam.prompt_encoder.image_embedding_size[0]
        self.upscaling = nn.ModuleList((_per_pixel(first), _channels_last(norm), _per_pixel(second)))
        self.activations = nn.ModuleList((activation, last))
        self.hypernetworks = nn.ModuleList(decoder.output_hypernetworks_mlps[1:])

    def forward(self, features: torch.Tensor, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return logits [k, m, 4s, 4s] for features [n, s * s, c], tokens [n, m, c] and rows `chosen` [k]."""
        features, tokens = (torch.index_select(each, 0, chosen) for each in (features, tokens))
        weights = torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(self.hypernetworks)], dim=1)
        grown = self.upscaling[0](features).unflatten(2, (4, -1))  # [k, s * s, 4, c / 4]
        grown = self.activations[0](self.upscaling[1](grown))
        grown = self.activations[1](self.upscaling[2](grown))  # [k, s * s, 4, 4 * c / 8]
        pixels = grown.reshape(grown.shape[0], -1, weights.shape[2])  # [k, s * s * 4 * 4, c / 8]
        logits = weights @ pixels.transpose(1, 2)  # [k, m, s * s * 4 * 4]
        side = self.side
        # [k * m, y, x, y of 2, x of 2, y of 4, x of 4]
        logits = logits.reshape(-1, side, side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        low_res: torch.Tensor = logits.reshape(-1, MASKS_PER_POINT, 4 * side, 4 * side)
        return low_res


def prompt_vectors(sam: Sam) -> PromptVectors:
    """Return what the host needs to encode prompts as `sam.prompt_encoder` does.

    Raises:
        InputError: the prompt encoder is of another kind.
    """
    encoder = sam.prompt_encoder
    first, norm, _, second, second_norm, _, last = encoder.mask_downscaling
    height, width = encoder.input_image_size
    if height != width or encoder.num_point_embeddings != LABELS or {norm.eps, second_norm.eps} != {NORM_EPS}:
        raise InputError(
            f"got a prompt encoder of {height} x {width} px with {encoder.num_point_embeddings} labels, "
            "expected SAM's: square, 4 labels"
        )
    return PromptVectors(
        side=int(width),
        frequencies=_array(encoder.pe_layer.positional_encoding_gaussian_matrix),
        labels=_array(torch.cat([each.weight for each in encoder.point_embeddings])),
        not_a_point=_array(encoder.not_a_point_embed.weight[0]),
        no_mask=_array(encoder.no_mask_embed.weight[0]),
        mask_layers=(_mask_layer(first, norm), _mask_layer(second, second_norm), _mask_layer(last, None)),
    )


def _mask_layer(layer: nn.Conv2d, norm: LayerNorm2d | None) -> MaskLayer:
    """Return a convolution whose size is its stride as a product of its pixels' channels."""
    if layer.kernel_size != layer.stride or layer.bias is None:
        raise InputError(f"got {layer} in the prompt encoder, expected a size that equals the stride, a bias")
    return MaskLayer(
        product=_array(layer.weight.permute(2, 3, 1, 0).flatten(0, 2)),  # [y, x, in], out
        bias=_array(layer.bias),
        scale=None if norm is None else _array(norm.weight),
        shift=None if norm is None else _array(norm.bias),
    )


def _array(values: torch.Tensor) -> Float:
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float32)


def _per_pixel(layer: nn.ConvTranspose2d) -> nn.Linear:
    """Return a transposed convolution of size and stride 2 as a product: channels -> 2 * 2 * channels."""
    if layer.kernel_size != (2, 2) or layer.stride != (2, 2) or layer.bias is None:
        raise InputError(
            f"got an upscaling {layer}, expected transposed convolutions of size and stride 2 with a bias"
        )
    product = nn.Linear(layer.in_channels, 4 * layer.out_channels)
    with torch.no_grad():
        product.weight.copy_(layer.weight.permute(2, 3, 1, 0).flatten(0, 2))  # [y, x, out], in
        product.bias.copy_(layer.bias.repeat(4))
    return product


def _channels_last(norm: LayerNorm2d) -> nn.LayerNorm:
    """Return SAM's norm over image channels, for channels that come last."""
    last = nn.LayerNorm(len(norm.weight), eps=norm.eps)
    with torch.no_grad():
        last.weight.copy_(norm.weight)
        last.bias.copy_(norm.bias)
    return last
