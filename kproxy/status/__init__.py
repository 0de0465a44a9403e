"""The status of the daemon: what the status page, its JSON form and `kproxy status` show."""
