"""Figures of the page of a run, by subject: a new file holds new figures."""
