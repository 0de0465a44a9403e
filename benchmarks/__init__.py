"""Measurements of kproxy: the cost of one change, memory, and starting, at several sizes of a cluster.

python -m benchmarks --help. docs/benchmarks.md says what each figure means and has those of the last run.
"""
