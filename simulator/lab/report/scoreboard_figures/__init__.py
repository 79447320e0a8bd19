"""Figures of the page of the accuracy, one a file: a new file is a new figure."""
