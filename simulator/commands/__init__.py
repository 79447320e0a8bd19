"""What a command does, from its input to its folder, without a word printed."""
