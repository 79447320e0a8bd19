"""Seconds of a piece of work on a piece of hardware. No clock, and no policy decisions."""
