"""Figures of the page of an execution, one a file: a new file is a new figure."""
