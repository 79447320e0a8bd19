"""Pages of the lab's results folders, one a file that is called as the command which wrote the
folder: ``build(folder)`` gives the page as HTML, and its verdict.
"""
