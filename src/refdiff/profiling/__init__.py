"""Latency by stage, graph and layer: spans of a watched pipeline, tables of them, comparison of records."""
