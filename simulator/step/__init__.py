"""Price of one step: its operations in order, with seconds."""
