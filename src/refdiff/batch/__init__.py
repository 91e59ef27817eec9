"""Inference on one image or on many: predictions, their files, resumable folders, and the demo."""
