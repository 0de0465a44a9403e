"""Connection tracking: which flows are stale, when they are deleted, and how."""
