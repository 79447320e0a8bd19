"""What every room stands on: errors in a user's words, strict values, files of data, policies by
file name, and chance.
"""
