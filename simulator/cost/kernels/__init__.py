"""What one kernel takes on one GPU: seconds from counts, peaks and a few fitted coefficients."""
