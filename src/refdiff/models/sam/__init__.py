"""Segment Anything's checkpoints: the original layout, transformers', MobileSAM's and EfficientViT-SAM's."""

from refdiff.models.sam.loading import load_sam
from refdiff.models.sam.sizes import (
    EFFICIENT_SAM_L0,
    EFFICIENT_SAM_XL0,
    MOBILE_SAM,
    VIT_B,
    VIT_H,
    VIT_L,
    AnySamSizes,
    SamSizes,
    build_sam,
    infer_sam_sizes,
    sam_spec,
)

__all__ = [
    "EFFICIENT_SAM_L0",
    "EFFICIENT_SAM_XL0",
    "MOBILE_SAM",
    "VIT_B",
    "VIT_H",
    "VIT_L",
    "AnySamSizes",
    "SamSizes",
    "build_sam",
    "infer_sam_sizes",
    "load_sam",
    "sam_spec",
]
