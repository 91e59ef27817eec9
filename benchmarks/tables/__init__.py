"""Tables of README.md and docs/, made from the records in results/: `python -m benchmarks.tables`."""
