"""The miniature's training: every loss can be minimised, a run resumes, held-out seeds are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from refdiff.miniature.training.store import SceneStore, render_shard

    folder = tmp_path_factory.mktemp("scenes")
    render_shard(folder, 0, first_seed=0, count=8)
    return SceneStore(folder)


@pytest.fixture(scope="module")
def encoder():
    from refdiff.miniature.stack import miniature_tokenizer_json
    from refdiff.miniature.training.store import PhraseEncoder

    return PhraseEncoder(miniature_tokenizer_json())


def test_a_shard_that_reaches_the_held_out_seeds_is_refused(tmp_path):
    from refdiff.data.synthetic import HELD_OUT_FROM
    from refdiff.miniature.training.store import render_shard

    with pytest.raises(ValueError, match="held-out"):
        render_shard(tmp_path, 0, first_seed=HELD_OUT_FROM - 1, count=2)
    assert not list(tmp_path.iterdir())


def test_a_stored_scene_is_the_rendered_scene(store):
    from refdiff.miniature.scenes import render_scene

    scene, stored = render_scene(3), store[3]
    assert np.array_equal(stored.image, scene.image)
    assert all(np.array_equal(stored.mask(i), mask) for i, mask in enumerate(scene.masks))
    assert {target for _, target in stored.phrases} <= set(range(len(scene.objects)))


def _vae(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.training.image_models import vae_loss

    vae = architecture.autoencoder()
    return [vae], vae_loss(vae, store)


def _sam(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.training.image_models import sam_loss

    sam = architecture.sam()
    return [sam.image_encoder, sam.mask_decoder.iou_prediction_head], sam_loss(sam, store)


def _clip(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.stack import vocabulary_size
    from refdiff.miniature.training.contrastive import clip_loss

    clip = architecture.clip(vocabulary_size())
    return [clip.visual, clip.transformer], clip_loss(clip, store, encoder)


def _diffusion(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.stack import vocabulary_size
    from refdiff.miniature.training.grounding import encode_store, grounding_loss

    text, unet = architecture.text_encoder(vocabulary_size()), architecture.unet()
    latents = encode_store(architecture.autoencoder(), store)
    return [text, unet], grounding_loss(text, unet, store, encoder, latents)


def _edge_vae(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.stack import load_miniature
    from refdiff.miniature.training.distillation import latent_loss
    from refdiff.miniature.training.grounding import encode_store

    vae = architecture.tiny_autoencoder()
    return [vae.encoder], latent_loss(vae, store, encode_store(load_miniature().vae, store)[0])


def _edge_sam(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.stack import load_miniature
    from refdiff.miniature.training.distillation import embed_store, embedding_loss, inherit

    sam, teacher = architecture.tiny_sam(), load_miniature().sam
    inherit(sam, teacher.state_dict())
    parts = [sam.image_encoder, sam.mask_decoder.transformer]
    return parts, embedding_loss(sam, store, embed_store(teacher, store))


def _edge_clip(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.stack import load_miniature, vocabulary_size
    from refdiff.miniature.training.distillation import vector_loss

    clip = architecture.small_clip(vocabulary_size())
    return [clip.visual], vector_loss(clip, load_miniature().clip, store, encoder)


def _edge_unet(store, encoder):
    from refdiff.miniature import architecture
    from refdiff.miniature.stack import load_miniature
    from refdiff.miniature.training.distillation import map_loss, tiny_latents
    from refdiff.miniature.training.grounding import encode_store

    stack, unet = load_miniature(), architecture.small_unet()
    latents = (*encode_store(stack.vae, store), tiny_latents(architecture.tiny_autoencoder(), store))
    return [unet], map_loss(stack.text_encoder, (stack.unet, unet), store, encoder, latents)


STAGES = [_vae, _sam, _clip, _diffusion, _edge_vae, _edge_sam, _edge_clip, _edge_unet]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_is_finite_repeatable_and_reaches_every_part(stage, store, encoder):
    import torch

    torch.manual_seed(0)
    parts, loss = stage(store, encoder)
    torch.manual_seed(1)
    first, figures = loss(np.random.default_rng(5), 0.7)
    torch.manual_seed(1)
    second, _ = loss(np.random.default_rng(5), 0.7)
    assert torch.isfinite(first)
    assert float(first.detach()) == pytest.approx(float(second.detach()), rel=1e-4)
    assert all(np.isfinite(value) for value in figures.values())
    first.backward()
    for part in parts:
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_the_crop_view_of_training_is_the_towers_own_forward(store):
    import torch

    from refdiff.miniature import architecture
    from refdiff.miniature.stack import vocabulary_size
    from refdiff.miniature.training.contrastive import encode_views, hard_views

    torch.manual_seed(0)
    visual = architecture.clip(vocabulary_size()).visual.eval()
    scene = store[0]
    (view,) = hard_views(scene, scene.mask(0)[None], None, square=True)
    side, patch = 64, 8
    blocks = torch.from_numpy(view.patches).view(8, 8, 3, patch, patch)
    image = blocks.permute(2, 0, 3, 1, 4).reshape(1, 3, side, side)
    with torch.no_grad():
        ours = encode_views(visual, [view])[0][0]
        theirs = torch.nn.functional.normalize(visual(image), dim=-1)[0]
    assert float(ours @ theirs) > 0.999  # ours runs its blocks in bfloat16


def test_training_resumes_where_it_was_stopped(tmp_path):
    import torch

    from refdiff.miniature.training.loop import Task, averaged_weights, train

    def task(minutes: float) -> Task:
        layer = torch.nn.Linear(2, 1)

        def loss(rng, share):
            inputs = torch.from_numpy(rng.normal(size=(8, 2)).astype(np.float32))
            return (layer(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean(), {}

        return Task(name="toy", modules=torch.nn.ModuleDict({"layer": layer}), loss=loss, minutes=minutes)

    train(task(0.004), tmp_path)
    steps = torch.load(tmp_path / "toy.pt", weights_only=True)["state"]["step"]
    train(task(0.012), tmp_path)
    later = torch.load(tmp_path / "toy.pt", weights_only=True)["state"]["step"]
    logged = [json.loads(line)["step"] for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert later > steps > 0
    assert logged == sorted(logged)
    assert set(averaged_weights(tmp_path, "toy")) == {"layer.weight", "layer.bias"}
