"""What a step makes every rank and link do: exact counts of FLOPs, bytes and tokens. No hardware,
no seconds.
"""
