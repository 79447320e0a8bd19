"""The lab's commands, one a file, each with ``register(app)``; all printing of the lab."""
