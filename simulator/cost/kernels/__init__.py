"""Prices of single kernels on one GPU: seconds from counts, peaks and a few fitted coefficients."""
