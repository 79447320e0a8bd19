"""Bands and probabilities of an answer's figures: what the calibration's error, other samples of
requests and other conditions make of them.
"""
