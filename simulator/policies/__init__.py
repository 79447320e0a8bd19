"""What is chosen: one folder a family, one policy a file."""
