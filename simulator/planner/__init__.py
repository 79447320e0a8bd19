"""Which deployment, on what, how many: a space, a closed-form screen, simulation of what is left,
and the answer.
"""
