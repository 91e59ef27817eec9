"""Writes diffusers' and transformers' modules as Stable Diffusion's original code would have saved them.

It builds the original's block lists up in the order in which CompVis/latent-diffusion builds its UNet
(openaimodel.py) and takes each block's tensors from the diffusers module: no renaming of names, and nothing
shared with the reader that is tested with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def original_state(
    unet: Any, vae: Any, text_encoder: Any, *, open_clip: bool, unused_block: bool = True
) -> Tensors:
    """The state dict of a whole single-file checkpoint.

    Args:
        unet: a UNet2DConditionModel.
        vae: an AutoencoderKL with its decoder.
        text_encoder: a CLIPTextModel.
        open_clip: write the text encoder as SD 2.x does, else as SD 1.x does.
        unused_block: with `open_clip`, append the tower's last block, which is never used.
    """
    text = _open_clip_text(text_encoder, unused_block=unused_block) if open_clip else _text(text_encoder)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # v1-inference.yaml
    bystanders = {"betas": betas, "model_ema.decay": torch.tensor(0.9999), "logvar": torch.zeros(3)}
    return {
        **bystanders,
        **_behind("model.diffusion_model.", dict(_unet(unet))),
        **_behind("first_stage_model.", dict(_vae(vae))),
        **_behind("cond_stage_model.", text),
    }


def _behind(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def _of(prefix: str, module: Any) -> Tensors:
    return _behind(f"{prefix}." if prefix else "", module.state_dict())


def _unet(unet: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _of("time_embed.0", unet.time_embedding.linear_1).items()
    yield from _of("time_embed.2", unet.time_embedding.linear_2).items()
    inputs, outputs = [[_of("", unet.conv_in)]], []
    for block in unet.down_blocks:
        inputs += _layers(block)
        if block.downsamplers:
            inputs.append([_of("op", block.downsamplers[0].conv)])
    for block in unet.up_blocks:
        outputs += _layers(block)
        if block.upsamplers:
            outputs[-1].append(_of("conv", block.upsamplers[0].conv))
    yield from _numbered("input_blocks.", inputs)
    yield from _numbered("output_blocks.", outputs)
    if unet.mid_block is not None:
        first, second = unet.mid_block.resnets
        middle = [_resnet(first), _of("", unet.mid_block.attentions[0]), _resnet(second)]
        yield from _parts("middle_block.", middle)
    yield from _of("out.0", unet.conv_norm_out).items()
    yield from _of("out.2", unet.conv_out).items()


def _layers(block: Any) -> list[list[Tensors]]:
    attentions = getattr(block, "attentions", None)
    if not attentions:
        return [[_resnet(resnet)] for resnet in block.resnets]
    return [[_resnet(r), _of("", a)] for r, a in zip(block.resnets, attentions, strict=True)]


def _numbered(prefix: str, blocks: list[list[Tensors]]) -> Iterator[tuple[str, torch.Tensor]]:
    for number, parts in enumerate(blocks):
        yield from _parts(f"{prefix}{number}.", parts)


def _parts(prefix: str, parts: list[Tensors]) -> Iterator[tuple[str, torch.Tensor]]:
    for index, part in enumerate(parts):
        yield from _behind(f"{prefix}{index}.", part).items()


def _resnet(resnet: Any) -> Tensors:
    """in_layers: norm, silu, conv; emb_layers: silu, linear; out_layers: norm, silu, dropout, conv."""
    tensors = {
        **_of("in_layers.0", resnet.norm1),
        **_of("in_layers.2", resnet.conv1),
        **_of("emb_layers.1", resnet.time_emb_proj),
        **_of("out_layers.0", resnet.norm2),
        **_of("out_layers.3", resnet.conv2),
    }
    if resnet.conv_shortcut is not None:
        tensors |= _of("skip_connection", resnet.conv_shortcut)
    return tensors


def _vae(vae: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _of("quant_conv", vae.quant_conv).items()
    yield from _of("post_quant_conv", vae.post_quant_conv).items()
    last = len(vae.decoder.up_blocks) - 1
    ways = (
        ("encoder", "down", "downsample", "downsamplers", list(enumerate(vae.encoder.down_blocks))),
        # The original counts the decoder's levels from the finest, and runs them from the last to the first.
        (
            "decoder",
            "up",
            "upsample",
            "upsamplers",
            [(last - i, b) for i, b in enumerate(vae.decoder.up_blocks)],
        ),
    )
    for coder, way, sampling, samplers, blocks in ways:
        module = getattr(vae, coder)
        yield from _of(f"{coder}.conv_in", module.conv_in).items()
        yield from _of(f"{coder}.norm_out", module.conv_norm_out).items()
        yield from _of(f"{coder}.conv_out", module.conv_out).items()
        for level, block in blocks:
            for index, resnet in enumerate(block.resnets):
                yield from _behind(f"{coder}.{way}.{level}.block.{index}.", _vae_resnet(resnet)).items()
            if getattr(block, samplers):
                yield from _of(
                    f"{coder}.{way}.{level}.{sampling}.conv", getattr(block, samplers)[0].conv
                ).items()
        first, second = module.mid_block.resnets
        yield from _behind(f"{coder}.mid.block_1.", _vae_resnet(first)).items()
        yield from _behind(f"{coder}.mid.block_2.", _vae_resnet(second)).items()
        yield from _behind(f"{coder}.mid.attn_1.", _vae_attention(module.mid_block.attentions[0])).items()


def _vae_resnet(resnet: Any) -> Tensors:
    tensors = {
        **_of("norm1", resnet.norm1),
        **_of("conv1", resnet.conv1),
        **_of("norm2", resnet.norm2),
        **_of("conv2", resnet.conv2),
    }
    if resnet.conv_shortcut is not None:
        tensors |= _of("nin_shortcut", resnet.conv_shortcut)
    return tensors


def _vae_attention(attention: Any) -> Tensors:
    """Linear layers there, 1x1 convolutions in the original."""
    tensors = _of("norm", attention.group_norm)
    layers = (
        ("q", attention.to_q),
        ("k", attention.to_k),
        ("v", attention.to_v),
        ("proj_out", attention.to_out[0]),
    )
    for name, layer in layers:
        tensors |= {f"{name}.weight": layer.weight.data[:, :, None, None], f"{name}.bias": layer.bias.data}
    return tensors


def _text(text_encoder: Any) -> Tensors:
    tower = getattr(text_encoder, "text_model", text_encoder)
    positions = {
        "embeddings.position_ids": torch.arange(tower.embeddings.position_embedding.weight.shape[0])[None]
    }
    return _behind("transformer.text_model.", {**positions, **tower.state_dict()})


def _open_clip_text(text_encoder: Any, *, unused_block: bool) -> Tensors:
    tower = getattr(text_encoder, "text_model", text_encoder)
    width = tower.embeddings.token_embedding.weight.shape[1]
    tensors = {
        "token_embedding.weight": tower.embeddings.token_embedding.weight.data,
        "positional_embedding": tower.embeddings.position_embedding.weight.data,
        "text_projection": torch.eye(width),
        "logit_scale": torch.tensor(4.6),
        **_of("ln_final", tower.final_layer_norm),
    }
    layers = [*tower.encoder.layers, *([tower.encoder.layers[0]] if unused_block else [])]
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        stacked = [getattr(attention, f"{name}_proj") for name in "qkv"]
        block = {
            "attn.in_proj_weight": torch.cat([part.weight.data for part in stacked]),
            "attn.in_proj_bias": torch.cat([part.bias.data for part in stacked]),
            **_of("attn.out_proj", attention.out_proj),
            **_of("ln_1", layer.layer_norm1),
            **_of("ln_2", layer.layer_norm2),
            **_of("mlp.c_fc", layer.mlp.fc1),
            **_of("mlp.c_proj", layer.mlp.fc2),
        }
        tensors |= _behind(f"transformer.resblocks.{number}.", block)
    return _behind("model.", tensors)
