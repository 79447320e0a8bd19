"""Parallel map of one function over many items, on all cores and nodes."""
