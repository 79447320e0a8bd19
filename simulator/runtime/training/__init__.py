"""Training of a mixture of experts on several ranks with real gradients: its experts lie apart, and
tokens and gradients travel to them and back.
"""
