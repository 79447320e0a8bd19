"""Workloads: arrival times and lengths of requests, and the traces that hold both."""
