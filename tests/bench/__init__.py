"""Benchmarks: how fast, against a peer that is measured in the same run. See ``python -m tests.bench --help``."""
