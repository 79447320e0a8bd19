"""Figures of the page of a plan, one a file: a new file is a new figure."""
