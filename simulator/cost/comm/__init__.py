"""cost comm."""
