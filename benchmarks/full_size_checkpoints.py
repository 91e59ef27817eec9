"""Full-size models of random weights, the formats they are published in, and one forward pass of each.

For checkpoint_formats.py. The published architectures, drawn as `refdiff export --random-weights` draws them;
Stable Diffusion's files are written by tests/support/ldm_layout.py and by diffusers itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL
from open_clip.model import convert_weights_to_lp
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, SamConfig, SamModel

from refdiff.models.clip import VIT_B_16, ClipSizes, build_clip
from refdiff.models.diffusion import DiffusionConfigs, build_text_encoder, build_unet
from refdiff.models.sam import SamSizes, build_sam
from refdiff.models.stacks import random_module
from tests.support.ldm_layout import original_state
from tests.support.small_diffusion import write_folder

SEED = 0

Modules = Mapping[str, Any]
"""Component -> module."""
Answers = Mapping[str, torch.Tensor]


# Stable Diffusion


def draw_diffusion(configs: DiffusionConfigs) -> Modules:
    """Return the three modules, the VAE with its decoder, as every original file has it."""
    builders: Mapping[str, Callable[[], Any]] = {
        "text_encoder": partial(build_text_encoder, configs),
        "vae": partial(AutoencoderKL, **configs.vae),
        "unet": partial(build_unet, configs),
    }
    return {name: random_module(build, seed=SEED, name=name) for name, build in builders.items()}


def write_ldm(modules: Modules, folder: Path, *, suffix: str, open_clip: bool = False) -> Path:
    """Write one file in the original layout."""
    tensors, path = original_state(**modules, open_clip=open_clip), folder / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1, "epoch": 0}, path)
    else:
        save_file(_unshared(tensors), path)
    return path


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors that share memory, because safetensors refuses them."""
    seen: set[int] = set()
    ready = {}
    for key, tensor in tensors.items():
        ready[key] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return ready


def write_diffusers(modules: Modules, folder: Path) -> Path:
    """Write a pipeline's folder in half precision."""
    path: Path = write_folder("sd1", folder / "pipeline", modules=modules, variant="fp16")
    return path


def diffusion_answers(modules: Modules) -> Answers:
    """Text states, posterior moments of an image of 256 px, the UNet's output on its latent."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 49_408, (2, 77), generator=generator)
    image = torch.randn(1, 3, 256, 256, generator=generator)
    latent = torch.randn(2, 4, 32, 32, generator=generator)
    states = modules["text_encoder"](ids).last_hidden_state
    return {
        "text_encoder": states,
        "vae": modules["vae"].encode(image).latent_dist.parameters,
        "unet": modules["unet"](latent, 51, encoder_hidden_states=states).sample,
    }


# Segment Anything


def draw_sam(sizes: SamSizes) -> Modules:
    """segment_anything's module."""
    return {"sam": random_module(partial(build_sam, sizes), seed=SEED, name="sam")}


def draw_transformers_sam() -> Modules:
    """Return transformers' ViT-B; its decoder's norms have an epsilon of 1e-6, segment_anything's 1e-5."""
    sam = random_module(lambda: SamModel(SamConfig()), seed=SEED, name="sam")
    sam.prompt_encoder.shared_embedding = sam.shared_image_embedding  # one tensor; they were drawn apart
    return {"sam": sam}


def write_pth(modules: Modules, folder: Path) -> Path:
    """Write a state dict in torch's zip format."""
    path = folder / "sam.pth"
    torch.save(modules["sam"].state_dict(), path)
    return path


def write_transformers(modules: Modules, folder: Path) -> Path:
    """Write a folder with `save_pretrained`."""
    (module,) = modules.values()
    module.save_pretrained(folder)
    return folder


def _prompted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return an image, and two prompts of one point each."""
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(2))
    return image, torch.tensor([[[200.0, 700.0]], [[512.0, 300.0]]]), torch.tensor([[1], [1]])


def sam_answers(modules: Modules) -> Answers:
    """Embedding, mask logits and predicted IoU of segment_anything's module."""
    sam, (image, points, labels) = modules["sam"], _prompted()
    embedding = sam.image_encoder(image)
    sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
    masks, ious = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return {"embedding": embedding, "masks": masks, "ious": ious}


def transformers_sam_answers(modules: Modules) -> Answers:
    """Return the same results from transformers' module."""
    sam, (image, points, labels) = modules["sam"], _prompted()
    embedding = sam.get_image_embeddings(image)
    found = sam(image_embeddings=embedding, input_points=points[None], input_labels=labels[None])
    return {"embedding": embedding, "masks": found.pred_masks[0], "ious": found.iou_scores[0]}


# CLIP


def draw_clip(sizes: ClipSizes) -> Modules:
    """open_clip's module."""
    return {"clip": random_module(partial(build_clip, sizes), seed=SEED, name="clip")}


def draw_transformers_clip() -> Modules:
    """Return transformers' ViT-B/16 with QuickGELU, as OpenAI's is published there."""
    config = CLIPConfig(
        vision_config={"patch_size": 16, "hidden_act": "quick_gelu"},
        text_config={"hidden_act": "quick_gelu", "bos_token_id": 49_406, "eos_token_id": 49_407},
    )
    return {"clip": random_module(lambda: CLIPModel(config), seed=SEED, name="clip")}


def write_archive(modules: Modules, folder: Path) -> Path:
    """OpenAI's TorchScript archive: matrices in half precision, its three extra entries."""
    path, source = folder / "ViT-B-16.pt", modules["clip"]
    archived = open_clip.CLIP(**_model_cfg(VIT_B_16), cast_dtype=torch.float16).eval()
    archived.load_state_dict(source.state_dict())
    archived.requires_grad_(requires_grad=False)
    convert_weights_to_lp(archived)
    mask = archived.attn_mask
    del archived.attn_mask, archived.context_length, archived.vocab_size
    archived.attn_mask = mask  # a constant of the trace, no buffer
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49_408)):
        archived.register_buffer(name, torch.tensor(value))
    images, ids = _seen_and_read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates writing these
        torch.jit.trace(archived, (images.half(), ids), check_trace=False).save(str(path))
    return path


def write_open_clip_folder(modules: Modules, folder: Path) -> Path:
    """As the hub has it: config and weights."""
    save_file(modules["clip"].state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": _model_cfg(VIT_B_16)}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_bare(modules: Modules, folder: Path) -> Path:
    """Write the weights and nothing else."""
    path = folder / "clip.safetensors"
    save_file(modules["clip"].state_dict(), path)
    return path


def clip_answers(modules: Modules) -> Answers:
    """Vectors of two images and two phrases, of open_clip's module."""
    images, ids = _seen_and_read()
    return {"image": modules["clip"].encode_image(images), "text": modules["clip"].encode_text(ids)}


def transformers_clip_answers(modules: Modules) -> Answers:
    """Return the same results from transformers' module, which normalizes them."""
    images, ids = _seen_and_read()
    found = modules["clip"](input_ids=ids, pixel_values=images)
    return {"image": found.image_embeds, "text": found.text_embeds}


def normalized(modules: Modules) -> Answers:
    """open_clip's vectors as transformers' module returns its own."""
    answers = clip_answers(modules)
    return {name: torch.nn.functional.normalize(values, dim=-1) for name, values in answers.items()}


def _model_cfg(sizes: ClipSizes) -> dict[str, Any]:
    """open_clip's words for the sizes; heads are 64 wide and MLPs four times the tower, its defaults."""
    return {
        "embed_dim": sizes.embed_dim,
        "quick_gelu": sizes.quick_gelu,
        "vision_cfg": {
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "width": sizes.vision_width,
            "layers": sizes.vision_layers,
        },
        "text_cfg": {
            "context_length": sizes.context_length,
            "vocab_size": sizes.vocabulary,
            "width": sizes.text_width,
            "heads": sizes.text_heads,
            "layers": sizes.text_layers,
        },
    }


def _seen_and_read() -> tuple[torch.Tensor, torch.Tensor]:
    """Draw two images, [2, 3, 224, 224], and two phrases of four and eight tokens, [2, 77]."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(2, 77, dtype=torch.int64)
    for row, length in enumerate((4, 8)):
        words = torch.randint(0, 49_000, (length,), generator=generator)
        ids[row, : length + 2] = torch.tensor([49_406, *words.tolist(), 49_407])
    return torch.rand(2, 3, 224, 224, generator=generator), ids
