"""Figures of the page of the accuracy: a class each, in any file of this folder."""
