"""Choice of a deployment, its machines and their number: a space, a closed-form screen, simulation
of what is left, and the answer.
"""
