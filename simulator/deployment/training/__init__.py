"""Training plans: a split over machines, with every check passed."""
