"""Fits of calibrations on published measurements."""
