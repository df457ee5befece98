"""Benchmarks: how fast, how exact, how much memory. Every ratio is of two ways in one run."""
