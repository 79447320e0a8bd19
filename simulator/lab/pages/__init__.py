"""Pages of the lab's results folders, one a file that is called as the command which wrote the
folder: ``Results`` is their class, and ``render`` makes the page.
"""
