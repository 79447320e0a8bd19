"""The lab: predictions beside measurements, fits on measurements, and claims. It imports everything
else and nothing imports it: its commands, pages and families are found like plug-ins, each in a
folder that is called as that of the room which it adds to.
"""
