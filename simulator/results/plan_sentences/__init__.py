"""Sentences of a plan's answer, from its numbers alone."""
