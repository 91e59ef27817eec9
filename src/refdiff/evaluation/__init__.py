"""Metrics of a bundle, or of the torch reference, on a data set."""
