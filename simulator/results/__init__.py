"""What a run leaves: its tables, the numbers that people compare, its folder, and its verdict."""
