"""Foundations of every package: user errors, strict records, data files, plug-ins by file name, and
random streams.
"""
