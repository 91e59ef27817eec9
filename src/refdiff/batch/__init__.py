"""Batch inference: one picture, many phrases, folders of pictures, and the files that result."""
