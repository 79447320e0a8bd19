"""One function over many items, on all cores and nodes."""
