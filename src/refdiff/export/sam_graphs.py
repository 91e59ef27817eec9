"""SAM's graphs: the image encoder, and the decoder for 64 single-point prompts (METHOD §2, FIELD §3).

The decoder equals `sam.prompt_encoder` + `sam.mask_decoder` with one foreground point per prompt, no box and
no mask, `multimask_output=True`. Shapes are static. The 64 prompts share one image, and layer 0 computes on
that one image by broadcasting: no repeat_interleave, and 64 times less of that layer's image work.

Axes: n = 64 prompts, c = embedding channels, s = embedding side, m = 3 masks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from refdiff.contracts.graphs import MASKS_PER_POINT, POINTS_PER_BATCH
from refdiff.errors import InputError

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


class SamEncoder(nn.Module):
    """Normalised, padded image [1, 3, y, x] -> embedding [1, c, s, s]."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The image embedding."""
        embedding: torch.Tensor = self.image_encoder(image)
        return embedding


class SamDecoder(nn.Module):
    """Embedding and points [n, 2] (x, y in input pixels) -> low-resolution logits and predicted IoU."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        prompts, decoder = sam.prompt_encoder, sam.mask_decoder
        if decoder.num_multimask_outputs != MASKS_PER_POINT:
            raise InputError(f"got a SAM with {decoder.num_multimask_outputs} masks per point, expected 3")
        self.transformer = decoder.transformer
        self.upscaling = decoder.output_upscaling
        self.hypernetworks = nn.ModuleList(decoder.output_hypernetworks_mlps[1:])
        self.iou_head = decoder.iou_prediction_head
        height, width = prompts.input_image_size
        frequencies = prompts.pe_layer.positional_encoding_gaussian_matrix
        self.pixel_scale: torch.Tensor
        self.frequencies: torch.Tensor
        self.point_label: torch.Tensor
        self.no_point: torch.Tensor
        self.output_tokens: torch.Tensor
        self.dense: torch.Tensor
        self.image_positions: torch.Tensor
        with torch.no_grad():
            tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # [1 + 4, c]
            constants = {
                "pixel_scale": torch.tensor([[2.0 / width, 2.0 / height]]),
                "frequencies": 2.0 * math.pi * frequencies,
                "point_label": prompts.point_embeddings[1].weight,
                # The prompt encoder pads a prompt without a box with one more point, labelled "not a point".
                "no_point": prompts.not_a_point_embed.weight.expand(POINTS_PER_BATCH, 1, -1),
                "output_tokens": tokens.expand(POINTS_PER_BATCH, -1, -1),
                "dense": prompts.no_mask_embed.weight.reshape(1, -1, 1, 1),
                "image_positions": prompts.get_dense_pe(),
            }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, embedding: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, m, 4s, 4s] mask logits and [n, m] predicted IoU."""
        prompts = torch.cat([self._encode(points), self.no_point], dim=1)  # [n, 2, c]
        tokens = torch.cat([self.output_tokens, prompts], dim=1)  # [n, 5 + 2, c]
        tokens, pixels = self.transformer(embedding + self.dense, self.image_positions, tokens)
        channels, side = embedding.shape[1], embedding.shape[2]
        pixels = pixels.transpose(1, 2).reshape(POINTS_PER_BATCH, channels, side, side)
        upscaled = self.upscaling(pixels).flatten(2)  # [n, c / 8, 16 * s * s]
        # Token 0 predicts the IoUs, token 1 the single mask that the automatic mode does not use.
        weights = torch.stack([mlp(tokens[:, 2 + i]) for i, mlp in enumerate(self.hypernetworks)], dim=1)
        low_res = (weights @ upscaled).reshape(POINTS_PER_BATCH, MASKS_PER_POINT, 4 * side, 4 * side)
        iou: torch.Tensor = self.iou_head(tokens[:, 0])[:, 1:]
        return low_res, iou

    def _encode(self, points: torch.Tensor) -> torch.Tensor:
        """[n, 1, c]: Fourier features of the pixel centres, marked as foreground."""
        angles = ((points + 0.5) * self.pixel_scale - 1.0) @ self.frequencies  # [n, c / 2]
        features = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
        return (features + self.point_label).unsqueeze(1)
