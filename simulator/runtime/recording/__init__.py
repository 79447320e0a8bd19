"""Recordings of expert choices, made here: by training a small model, or by running one of the
``transformers`` library.
"""
