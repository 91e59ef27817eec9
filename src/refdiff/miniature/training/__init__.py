"""How the miniature is trained: one module per model, one loop, one store of rendered scenes."""
