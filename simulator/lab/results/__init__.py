"""Scores of predictions, targets that they are held to, and verdicts on claims."""
