"""Precision of a bundle: recorded feeds, dynamic and quantization ranges, recipes, conversion, and checks."""
