"""Figures of the page of a training, one a file."""
