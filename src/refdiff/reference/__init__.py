"""Ref-Diff in torch on the original modules, to be read beside the method: the yardstick."""
