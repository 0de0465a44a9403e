"""Stand-ins for the API server and the kernel, shipped for tests and benchmarks of kproxy and of what builds on it."""
