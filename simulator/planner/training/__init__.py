"""Plans of training: the cheapest split that trains a model in so many days."""
