"""Explanation of a run: where the time of its tokens goes, piece by piece, and what limits it."""
