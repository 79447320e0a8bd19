"""Training steps in virtual time: passes on ranks, stages of a pipeline, and what follows them."""
