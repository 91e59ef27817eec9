"""Training of the miniature: one module per model, one loop, one store of rendered scenes."""
