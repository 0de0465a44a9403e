"""nf_tables as values and as bytes: objects, encoding, transactions, notifications, and what a kernel supports."""
