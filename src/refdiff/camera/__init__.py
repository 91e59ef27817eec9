"""Masks that follow what phrases name through the frames of a camera or a video."""
