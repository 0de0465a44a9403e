"""Kubernetes Events: which notices become Events and how repeats are counted (series), and posting them (recorder)."""
