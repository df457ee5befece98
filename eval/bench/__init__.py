"""Benchmarks of speed, exactness and memory; attacks, fuzzing and long runs of the server.

Both sides of every ratio are measured in the same run.
"""
