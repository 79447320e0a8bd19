"""Recordings of expert choices, made by training a small model, or by running one of the
``transformers`` library.
"""
