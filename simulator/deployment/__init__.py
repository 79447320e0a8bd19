"""A deployment frozen: every policy built, every expert placed, every check passed."""
