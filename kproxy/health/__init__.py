"""What kproxy serves over HTTP: healthz, per-Service health checks, metrics, status."""
