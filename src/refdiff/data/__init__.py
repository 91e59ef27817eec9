"""Samples (an image and a phrase) and datasets: rendered scenes, image folders and CSV files."""
