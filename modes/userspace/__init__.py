"""userspace mode: the process itself forwards."""
