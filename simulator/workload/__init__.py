"""What is asked: when requests come, how long they are, and the traces that say both."""
