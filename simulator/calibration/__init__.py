"""Lessons of measurements: published kernels and servers, and this machine's own."""
