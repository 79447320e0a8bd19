"""Functions behind the lab's commands."""
