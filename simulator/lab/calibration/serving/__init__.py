"""Tables of calibrations that are fitted on serving points, one a file: ``sources``, the files of
measurements that it reads, and ``fit``, from their tables to entries by calibration and engine.
"""
