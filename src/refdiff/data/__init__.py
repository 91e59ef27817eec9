"""Samples and data sets: what the pipeline is asked, and where the pictures and phrases come from."""
