"""Contracts of the rooms: model sizes, graphs, options, bundles, sessions; no numerics, no heavy package."""
