"""Frozen plans of deployments: every policy built, every expert placed, every check passed."""
