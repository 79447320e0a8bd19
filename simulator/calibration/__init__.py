"""Times of this machine."""
