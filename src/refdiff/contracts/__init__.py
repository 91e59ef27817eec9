"""What the rooms agree on: model sizes, graphs, options, bundles, sessions. No numerics, no heavy package."""
