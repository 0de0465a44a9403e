"""The loop: coalesce changes, plan, apply, retry, report."""
