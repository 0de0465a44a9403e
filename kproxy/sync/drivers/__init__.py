"""One driver a mode: what the mode needs of this host, and a Programmer for each family."""
