"""Times a machine through the shards that run there, and fits what the simulator predicts with."""
