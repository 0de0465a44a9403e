"""The status of the daemon: its store, its JSON schema, its view on a page and in a terminal, and the HTTP servers."""
