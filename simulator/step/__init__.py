"""What one step costs: its operations in order, with seconds."""
