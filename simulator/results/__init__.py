"""Results of a run: tables, metrics, the results folder, and the verdict."""
