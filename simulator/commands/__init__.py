"""Commands from their input to their folder, without a word printed; the public functions among
them are the Python API.
"""
