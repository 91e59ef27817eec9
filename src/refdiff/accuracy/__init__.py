"""Metrics, the agreement of runtime and reference, and the committed tolerances.

All functions are pure; the caller provides masks and segmentations.
"""
