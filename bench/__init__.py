"""How fast, how much memory, and how that compares with the same work written by hand: `make bench`."""
