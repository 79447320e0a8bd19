"""Scenarios and questions: what a user writes and a command reads."""
