"""Choice of a deployment, its machines and their number: a space, an analytical screen, simulation
of what is left, and the answer.
"""
