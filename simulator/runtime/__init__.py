"""Plans executed for real: PyTorch shards in one process, or on Ray actors; and what they teach the simulator, as files."""
