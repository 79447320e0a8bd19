"""Seconds for a piece of work on a piece of hardware. No clock, no policy decides anything here."""
