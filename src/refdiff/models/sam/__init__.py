"""Segment Anything's checkpoints: the original layout, transformers', and MobileSAM's."""

from refdiff.models.sam.loading import load_sam
from refdiff.models.sam.sizes import VIT_B, VIT_H, VIT_L, SamSizes, build_sam, infer_sam_sizes, sam_spec

__all__ = ["VIT_B", "VIT_H", "VIT_L", "SamSizes", "build_sam", "infer_sam_sizes", "load_sam", "sam_spec"]
