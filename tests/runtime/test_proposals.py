import numpy as np
import pytest

from refdiff.contracts.options import Options, ProposalOptions
from refdiff.contracts.results import PackedMasks
from refdiff.contracts.spec import SamSpec
from refdiff.errors import EngineError
from refdiff.runtime.mask_decoder import MaskDecoder
from refdiff.runtime.masks import boxes, drop_small_regions
from refdiff.runtime.point_prompts import grid_points
from refdiff.runtime.prompt import point_tokens
from refdiff.runtime.proposals import (
    MaskProposer,
    keep_by_area,
    to_sam_pixels,
)
from tests.support.prompts import first_places, readable_vectors
from tests.support.regions import region_sizes

SPEC = SamSpec(image_size=64, embed_channels=16, embed_size=4)
SIZE = (36, 60)


class _Graph:
    def __init__(self, run):
        self._run = run

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        return self._run(feeds, outputs)


class _Sessions:
    """Disks around each point, radius by its column; every third output is thought bad."""

    def __init__(self, spoil=1.0, spoil_masks=1.0):
        self.spoil = spoil
        self.spoil_masks = spoil_masks
        self.points = []
        self.drawn = []

    def open(self, name):
        graphs = {"sam_encoder": self._encode, "sam_decoder": self._decode, "sam_masks": self._draw}
        return _Graph(graphs[name])

    def _encode(self, feeds, outputs=None):
        assert feeds["image"].shape == (1, 3, 64, 64)
        return {"embedding": np.zeros((1, 16, 4, 4), np.float32)}

    def _decode(self, feeds, outputs=None):
        prompts = feeds["prompts"]
        assert prompts.shape[1:] == (2, 16)
        assert prompts.dtype == np.float32
        points = first_places(prompts, SPEC)
        self.points.append(points)
        count = len(points)
        iou = np.tile(np.array([0.95, 0.9, 0.5], np.float32), (count, 1))
        iou -= np.arange(count, dtype=np.float32)[:, None] / 1000
        tokens = np.zeros((count, 3, 16), np.float32)
        features = np.repeat(points[:, None], 16, axis=1)  # enough to draw from
        return {"iou": iou * np.float32(self.spoil), "tokens": tokens, "features": features}

    def _draw(self, feeds, outputs=None):
        assert feeds["chosen"].dtype == np.int32
        assert 1 <= len(feeds["chosen"]) <= 16
        self.drawn += feeds["chosen"].tolist()
        points = feeds["features"][feeds["chosen"], 0]
        y, x = np.mgrid[:16, :16] * 4 + 2
        distance = np.hypot(x - points[:, 0, None, None], y - points[:, 1, None, None])
        radii = np.array([6.0, 12.0, 20.0])[None, :, None, None]
        low_res = ((radii - distance[:, None]) * 3).astype(np.float32)
        return {"low_res": low_res * np.float32(self.spoil_masks)}

    def close(self):
        pass


def _image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def _propose(sessions=None, **options):
    settings = {"points_per_side": 3, "stability_threshold": 0.5} | options
    return _proposer(sessions or _Sessions(), **settings).encode(_image()).candidates


def _proposer(sessions, vectors=None, **options):
    vectors = vectors or readable_vectors(SPEC)
    return MaskProposer(sessions, SPEC, vectors, Options(proposals=ProposalOptions(**options)))


def test_candidates_come_in_decreasing_predicted_iou_with_their_measures():
    found = _propose()
    assert (np.diff(found.predicted_iou) <= 0).all()
    assert found.masks.shape[1:] == SIZE
    assert found.masks.dtype == np.bool_
    assert found.areas_px.tolist() == [int(mask.sum()) for mask in found.masks]
    for mask, (x0, y0, x1, y1) in zip(found.masks, found.boxes_xyxy_px, strict=True):
        assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() == mask.sum()


def test_masks_are_decoded_only_of_prompts_above_the_iou_threshold():
    sessions = _Sessions()
    few = _propose(sessions, points_per_side=8, pred_iou_threshold=0.93)  # of point i: 0.95 - i / 1000
    assert sessions.drawn == list(range(20))
    every = _Sessions()
    all_drawn = _propose(every, points_per_side=8, pred_iou_threshold=0.93, decode_all_prompts=True)
    assert every.drawn == list(range(64))
    assert np.array_equal(few.masks, all_drawn.masks)
    assert np.array_equal(few.predicted_iou, all_drawn.predicted_iou)


def test_what_is_not_above_the_predicted_iou_threshold_is_out():
    assert (_propose(pred_iou_threshold=0.9).predicted_iou > 0.9).all()


def test_a_short_batch_is_filled_with_its_last_point_whose_masks_are_dropped():
    sessions = _Sessions()
    found = _propose(sessions, points_per_side=9, nms_iou=1.0, pred_iou_threshold=0.0)  # 64 + 17 points
    assert [len(each) for each in sessions.points] == [64, 64]
    assert (sessions.points[1][17:] == sessions.points[1][16]).all()
    assert len(found) <= 81 * 3


def test_an_image_where_nothing_is_found_is_one_candidate():
    found = _propose(pred_iou_threshold=0.99)
    assert len(found) == 1
    assert found.masks.all()
    assert found.boxes_xyxy_px.tolist() == [[0, 0, 59, 35]]
    assert found.kept.tolist() == [True]


def test_an_engine_that_returns_nan_is_not_taken_for_an_empty_image():
    with pytest.raises(EngineError, match="sam_decoder returned values that are not finite"):
        _propose(_Sessions(spoil=np.nan))
    with pytest.raises(EngineError, match="sam_masks returned values that are not finite"):
        _propose(_Sessions(spoil_masks=np.nan))


def test_where_edge_finds_nothing_nothing_can_match():
    found = _propose(pred_iou_threshold=0.99, drop_filtered=True)
    assert found.kept.tolist() == [False]
    assert found.predicted_iou.tolist() == [0.0]


class _Specked(_Sessions):
    """One disk in the middle from every prompt; of the first prompt with a speck in the image's corner."""

    def _decode(self, feeds, outputs=None):
        middle = point_tokens(readable_vectors(SPEC), np.full((len(feeds["prompts"]), 2), 24, np.float32))
        return super()._decode({"prompts": middle})

    def _draw(self, feeds, outputs=None):
        results = super()._draw(feeds)
        results["low_res"][np.asarray(feeds["chosen"]) == 0, :, :2, :2] = 9.0
        return results


def test_small_regions_go_and_boxes_follow_their_masks():
    specked, tidy = (_propose(_Specked(), nms_iou=1.0, min_region_share=share) for share in (0, 0.04))
    assert min(region_sizes(mask).min() for mask in specked.masks) < 0.04 * 36 * 60
    assert min(region_sizes(mask).min() for mask in tidy.masks) >= 0.04 * 36 * 60
    np.testing.assert_array_equal(tidy.boxes_xyxy_px, boxes(tidy.masks))
    assert tidy.areas_px.tolist() == [int(mask.sum()) for mask in tidy.masks]


@pytest.mark.needs_torch
@pytest.mark.parametrize("seed", range(20))
def test_masks_without_small_regions_come_in_the_order_of_segment_anything(seed):
    generator = pytest.importorskip("segment_anything").SamAutomaticMaskGenerator
    amg = pytest.importorskip("segment_anything.utils.amg")
    torch = pytest.importorskip("torch")
    pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    binary = np.zeros((12, *SIZE), np.bool_)
    for mask in binary:
        top, left, height, width = rng.integers((0, 0, 8, 8), (24, 40, 20, 30))
        mask[top : top + height, left : left + width] = True
        mask ^= rng.random(SIZE) < rng.choice([0, 0.01])
    least_px = 40
    theirs = generator.postprocess_small_regions(
        amg.MaskData(rles=amg.mask_to_rle_pytorch(torch.from_numpy(binary)), boxes=torch.zeros(12, 4)),
        least_px,
        0.7,
    )
    rles = np.stack([amg.rle_to_mask(rle) for rle in theirs["rles"]])
    for found in (binary, PackedMasks(binary, SIZE)):
        ours, _ = drop_small_regions(found, least_px, max_iou=0.7)
        np.testing.assert_array_equal(ours, rles)


def test_of_masks_that_become_alike_without_small_regions_the_clean_one_stays():
    options = {"nms_iou": 0.6, "pred_iou_threshold": 0.91, "min_area_px": 0}
    specked, tidy = (_propose(_Specked(), **options, min_region_share=share) for share in (0, 0.04))
    assert len(specked) == 2
    assert len(tidy) == 1
    assert tidy.predicted_iou[0] == specked.predicted_iou[1]
    assert np.array_equal(tidy.masks[0], specked.masks[1])


def test_prompts_may_lie_anywhere():
    sessions = _Sessions()
    proposer = _proposer(sessions, stability_threshold=0.5)
    found = proposer.propose_at(np.array([[0.5, 0.25]]), MaskDecoder(sessions, SPEC).embed(_image()), SIZE)
    assert np.allclose(sessions.points[0], [[32, 9.5]], atol=1e-4)  # of a resized image of 38 by 64 px
    x0, y0, x1, y1 = found.boxes_xyxy_px[0]
    assert abs((x0 + x1) / 2 - 30) <= 1
    assert abs((y0 + y1) / 2 - 9) <= 1


def test_the_filter_keeps_the_largest_above_both_least_areas():
    areas = np.array([50, 400, 30, 400, 10])
    assert keep_by_area(areas, SIZE, ProposalOptions(keep_largest=3)).tolist() == [1, 1, 0, 1, 0]
    assert keep_by_area(areas, SIZE, ProposalOptions(min_area_px=30)).tolist() == [1, 1, 0, 1, 0]
    assert keep_by_area(areas, SIZE, ProposalOptions(min_area_share=0.1)).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", [(36, 60), (1080, 1920), (61, 17)])
def test_points_equal_segment_anythings(size):
    from segment_anything.utils.amg import build_point_grid
    from segment_anything.utils.transforms import ResizeLongestSide

    resize = ResizeLongestSide(1024)
    theirs = resize.apply_coords(build_point_grid(7) * np.array(size)[None, ::-1], size)
    ours = to_sam_pixels(grid_points(7), resize.get_preprocess_shape(*size, 1024))
    assert np.allclose(ours, theirs, atol=1e-4)


def _tiny_sam(torch):
    from segment_anything import modeling

    torch.manual_seed(3)
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=16
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=16,
            transformer=modeling.TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16),
        ),
    ).eval()
    torch.manual_seed(2)
    for weights in sam.mask_decoder.parameters():  # untrained masks are flat: make them vary over the image
        if weights.ndim > 1:
            torch.nn.init.xavier_normal_(weights, gain=2.5)
    return sam


class _TorchSessions:
    """SAM itself behind the graph contract."""

    def __init__(self, sam, torch):
        self._sam, self._torch = sam, torch

    def open(self, name):
        graphs = {"sam_encoder": self._encode, "sam_decoder": self._decode, "sam_masks": self._draw}
        return _Graph(graphs[name])

    def _encode(self, feeds, outputs=None):
        with self._torch.no_grad():
            return {"embedding": self._sam.image_encoder(self._torch.from_numpy(feeds["image"])).numpy()}

    def _decode(self, feeds, outputs=None):
        sparse = self._torch.from_numpy(feeds["prompts"])
        with self._torch.no_grad():
            dense = self._sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
                len(sparse), -1, 4, 4
            )
            low_res, iou = self._sam.mask_decoder(
                image_embeddings=self._torch.from_numpy(feeds["embedding"]),
                image_pe=self._sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        return {
            "iou": iou.numpy(),
            "tokens": np.zeros((len(sparse), 3, 16), np.float32),
            "features": low_res.numpy(),
        }

    def _draw(self, feeds, outputs=None):
        return {"low_res": feeds["features"][feeds["chosen"]]}


@pytest.mark.needs_torch
@pytest.mark.parametrize(("size", "least_iou"), [((36, 60), 0.0), ((36, 60), 2.0), ((150, 90), 0.0)])
def test_candidates_equal_segment_anythings_automatic_mode(size, least_iou):
    import torch
    from segment_anything import SamAutomaticMaskGenerator

    from refdiff.export.sam_graphs import prompt_vectors

    sam = _tiny_sam(torch)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    options = {"points_per_side": 9, "pred_iou_threshold": least_iou, "stability_threshold": 0.1}
    theirs = SamAutomaticMaskGenerator(
        sam, points_per_side=9, pred_iou_thresh=least_iou, stability_score_thresh=0.1, box_nms_thresh=0.9
    ).generate(image)
    sessions, vectors = _TorchSessions(sam, torch), prompt_vectors(sam)
    ours = _proposer(sessions, vectors, **options, nms_iou=0.9).encode(image).candidates
    assert len(theirs) > 1
    assert np.allclose(ours.predicted_iou, [record["predicted_iou"] for record in theirs], atol=1e-4)
    same = ours.masks == np.stack([record["segmentation"] for record in theirs])
    assert same.mean() > 0.9999  # a logit within rounding of the threshold may fall on the other side
