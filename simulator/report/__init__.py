"""The report: one self-contained page made of the figures in :mod:`simulator.report.figures`."""
