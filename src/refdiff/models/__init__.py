"""Foreign checkpoints: files in their original layout to the original modules, sizes read off the tensors."""
