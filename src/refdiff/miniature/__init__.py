"""A small stack of the real model classes, trained on rendered table-top scenes."""
