"""Benchmarks: our reads and writes against what a user would pick instead, in one run."""
