"""What the lab's commands do."""
