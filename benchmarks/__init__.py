"""Measurements, recorded as JSON in results/: from the repository, `python -m benchmarks.NAME` runs one."""
