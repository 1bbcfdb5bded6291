"""Benchmarks of nar-serve against peers that are measured in the same run. See ``python -m tests.bench --help``."""
