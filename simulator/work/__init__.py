"""Exact counts of one step's work: FLOPs, bytes and tokens of every rank and link. No hardware and
no seconds.
"""
