"""`moesim execute`."""
