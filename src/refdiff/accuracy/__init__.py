"""How good is it, and is it still the reference: metrics, agreement, and the committed gates.

Pure functions on values; whoever composes hands over the masks and the segmentations.
"""
