"""Policies: one package for each family, one file for each policy."""
