"""Figures of the page of a run, one a file: a new file is a new figure."""
