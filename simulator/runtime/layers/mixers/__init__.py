"""Mixers that can be executed, as PyTorch layers, one kind in a file."""
