"""Stale connection tracking entries: which ones they are, when they are deleted, and how.

The way through: after a sync, `reconciler.Reconciler` compares the plans with those of the last sync; when flows may be
stale it has `table.KernelConntrack` list the kernel's entries (bytes to `Flow`s: `codec`), `stale_flows` picks the
stale ones, and the table deletes them.
"""
