"""Feed-forward blocks as PyTorch layers, one kind a file: those that can be executed."""
