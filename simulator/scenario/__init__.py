"""What a user writes and a command reads: scenarios and questions."""
