"""Tables that follow from others of a run, one in a file: written as ``NAME.csv``, found by
``Results.frame``, described with all others.

A file has ``COLUMNS``, the meaning of each column, and ``make(results)``. With ``show(table)`` the
table is one of a few rows, which files, pages and answers have where it has any.
"""
