"""cost compute."""
