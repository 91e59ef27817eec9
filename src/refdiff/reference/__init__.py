"""Ref-Diff in torch on the original modules; the exported graphs and the runtime are measured against it."""
